//! The seam of a virtual machine and its kinds.
