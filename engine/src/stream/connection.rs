//! The connections that the rest of the engine sends its commands by.

use redis::{
    Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, ConnectionManager},
};

use super::cluster::Slot;

/// A connection for commands that answer at once. It comes back by itself, and clones share it.
#[derive(Clone)]
pub enum Connection {
    /// To the one Redis there is.
    One(ConnectionManager),
    /// To whichever node of a cluster has the shard.
    Slot(Slot),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::One(connection) => connection.req_packed_command(command),
            Connection::Slot(slot) => Box::pin(slot.command(command)),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipe: &'a Pipeline,
        offset: usize,
        n: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::One(connection) => connection.req_packed_commands(pipe, offset, n),
            Connection::Slot(slot) => Box::pin(slot.commands(pipe, offset, n)),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::One(connection) => connection.get_db(),
            // A cluster has no other.
            Connection::Slot(_) => 0,
        }
    }
}
