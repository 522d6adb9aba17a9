//! Guest RAM, dirty logs, missing-page faults, and the strategies that move memory.
