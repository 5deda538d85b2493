//! What is compiled, what is refused, and what is kept of it.
