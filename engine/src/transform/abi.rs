//! The contract in `sdk-wasm/wit`, as the host's side of it: which worlds there are, and one call of one instance.
//!
//! A breaking change is a new version of the WIT package, another `bindgen!` here, and a variant of [`World`] and [`Instance`]
//! that [`World::find`] tries before the older ones.

use wasmtime::{
    Engine, Store, Trap,
    component::{Component, HasSelf, Linker},
};

use self::v1::eventpulse::transform::types::{Context, Level, Outcome as Answer};
use super::{Failure, Input, Kind, Outcome, engines::Class, output, state::State};
use crate::config;

/// Bytes that a guest hands over in one call beside its output: pointers, lengths, names. The host copies no more than that at
/// once, whatever lengths the guest claims.
const HANDED_OVER_EXTRA: usize = 64 << 10;

mod v1 {
    wasmtime::component::bindgen!({
        path: "../sdk-wasm/wit",
        world: "eventpulse:transform/transformer@1.0.0",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// A module that is linked and known to have the functions of a world.
pub(super) enum World {
    V1(v1::TransformerPre<State>),
}

impl World {
    /// # Errors
    /// When the module fits no world that the host knows.
    pub(super) fn find(engine: &Engine, component: &Component) -> wasmtime::Result<World> {
        let mut linker = Linker::new(engine);
        v1::Transformer::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
        Ok(World::V1(v1::TransformerPre::new(linker.instantiate_pre(component)?)?))
    }
}

impl v1::TransformerImports for State {
    fn log(&mut self, level: Level, message: String) {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        self.log.push(level, &message);
    }
}

impl v1::eventpulse::transform::types::Host for State {}

enum Guest {
    V1(v1::Transformer),
}

/// A module in a memory of its own.
pub(super) struct Instance {
    store: Store<State>,
    /// None until the first call, so that what a start function takes counts as the call's.
    guest: Option<Guest>,
}

impl Instance {
    pub(super) fn new(engine: &Engine, class: Class, settings: &config::Transform) -> Instance {
        let mut store = Store::new(engine, State::new(class, settings));
        store.limiter(|state| state);
        store.epoch_deadline_callback(State::at_tick);
        store.set_hostcall_fuel(settings.output_bytes_max.saturating_add(HANDED_OVER_EXTRA));
        Instance { store, guest: None }
    }

    pub(super) fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    /// The caller has begun the call in the state.
    pub(super) fn call(
        &mut self,
        world: &World,
        input: &Input,
        settings: &config::Transform,
    ) -> Result<Outcome, Failure> {
        self.store.set_epoch_deadline(1);
        match self.answer(world, input) {
            Ok(Ok(answer)) => {
                let outcome = match answer {
                    Answer::Unchanged => return Ok(Outcome::Unchanged),
                    Answer::Payload(bytes) => output::payload(bytes, settings.output_bytes_max)?,
                    Answer::Body(body) => {
                        output::body(body.content_type, body.bytes, body.headers, settings.output_bytes_max)?
                    }
                    Answer::Drop(reason) => Outcome::Drop(output::text(&reason)),
                };
                Ok(outcome)
            }
            Ok(Err(message)) => Err(Failure { kind: Kind::Error, message: output::text(&message) }),
            Err(error) => Err(self.failure(&error, settings)),
        }
    }

    fn answer(&mut self, world: &World, input: &Input) -> wasmtime::Result<Result<Answer, String>> {
        let guest = match self.guest.take() {
            Some(guest) => guest,
            None => match world {
                World::V1(module) => Guest::V1(module.instantiate(&mut self.store)?),
            },
        };
        let event = &input.event;
        let (id, webhook) = (event.id.to_string(), input.webhook.to_string());
        let answer = match &guest {
            Guest::V1(guest) => {
                let config: Vec<(&str, &str)> =
                    input.config.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let context = Context {
                    event_id: &id,
                    event_type: &event.kind,
                    webhook_id: &webhook,
                    created_at_ms: event.created_at.0.try_into().unwrap_or(0),
                    config: &config,
                };
                guest.call_transform(&mut self.store, context, &event.payload)?
            }
        };
        self.guest = Some(guest);
        Ok(answer)
    }

    fn failure(&self, error: &wasmtime::Error, settings: &config::Transform) -> Failure {
        let trap = error.downcast_ref::<Trap>();
        if trap == Some(&Trap::Interrupt) {
            let message = format!("it took more than {} ms of CPU time", settings.deadline.as_millis());
            return Failure { kind: Kind::Deadline, message };
        }
        if self.store.data().memory_refused {
            let message = format!(
                "it asked for more memory than the {} MiB it may have",
                self.store.data().memory_max() >> 20
            );
            return Failure { kind: Kind::Memory, message };
        }
        // wasmtime's type for it is private, so its text has to do. A test fails when that changes.
        if error.root_cause().to_string().contains("fuel allocated for hostcalls has been exhausted") {
            return output::too_large(settings.output_bytes_max);
        }
        let message = trap.map_or_else(|| error.root_cause().to_string(), Trap::to_string);
        Failure { kind: Kind::Trap, message: output::text(&message) }
    }
}
