//! The NBD protocol, client and server, over any byte stream.
