//! The words of Whimbrel: units, sets, operations, steps, events. No I/O, no threads.
