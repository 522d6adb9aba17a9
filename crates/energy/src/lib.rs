//! Energy meters of a host, and the model for hosts without one.
