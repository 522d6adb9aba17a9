//! What two hosts say to each other, and the link that carries it.
