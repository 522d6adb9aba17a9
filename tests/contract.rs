//! The contract that every member of every family keeps, on whole guests that move between two real hosts: nothing is
//! lost, it ends, and what can't be done leaves the guest where it was.

mod support;

#[path = "contract/by_name.rs"]
mod by_name;
#[path = "contract/free_pages.rs"]
mod free_pages;
#[path = "contract/laws.rs"]
mod laws;
#[path = "contract/order.rs"]
mod order;
#[path = "contract/product.rs"]
mod product;
#[path = "contract/sample.rs"]
mod sample;
