//! Makes the SDK's bindings from the contract. They are checked in, since the generator is eight times the code of
//! everything else that an author has to compile. All of it is in `tests/current.rs`.
