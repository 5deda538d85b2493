//! Between the author's function and the host.

/// Makes a function the module's transform. It takes a [`Context`](crate::Context) by reference and a
/// [`Payload`](crate::Payload), and gives back a [`Result`](crate::Result). Once in a crate.
#[macro_export]
macro_rules! export {
    ($function:path) => {
        const _: () = {
            #[cfg(target_arch = "wasm32")]
            struct Transformer;

            #[cfg(target_arch = "wasm32")]
            impl $crate::bindings::Guest for Transformer {
                fn transform(
                    context: $crate::bindings::Context,
                    payload: ::std::vec::Vec<u8>,
                ) -> ::core::result::Result<$crate::bindings::Outcome, ::std::string::String> {
                    $crate::private::call($function, context, payload)
                }
            }

            #[cfg(target_arch = "wasm32")]
            $crate::bindings::export_transformer!(
                Transformer with_types_in $crate::bindings
            );

            // Natively nothing is exported: a wrong signature is an error all the same.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn(&$crate::Context, $crate::Payload) -> $crate::Result = $function;
        };
    };
}

/// For the macro's use only: it may change with any version.
#[cfg(target_arch = "wasm32")]
pub mod private {
    use crate::{Context, Error, Outcome, Payload, Result, bindings::eventpulse::transform::types, log};

    pub use wit_bindgen::rt as runtime;

    /// One call.
    pub fn call(
        function: fn(&Context, Payload) -> Result,
        context: types::Context,
        payload: Vec<u8>,
    ) -> core::result::Result<types::Outcome, String> {
        // The host sees no more of a panic than "unreachable".
        std::panic::set_hook(Box::new(|panic| log::error(panic)));
        let context = Context::from_host(
            context.event_id,
            context.event_type,
            context.webhook_id,
            context.created_at_ms,
            context.config,
        );
        function(&context, Payload::from(payload)).map(lower).map_err(|error| reason(&error))
    }

    fn lower(outcome: Outcome) -> types::Outcome {
        match outcome {
            Outcome::Unchanged => types::Outcome::Unchanged,
            Outcome::Payload(json) => types::Outcome::Payload(json),
            Outcome::Body(body) => {
                let (content_type, bytes, headers) = body.into_parts();
                types::Outcome::Body(types::HttpBody { content_type, bytes, headers })
            }
            Outcome::Drop(reason) => types::Outcome::Drop(reason),
        }
    }

    /// With its causes, on one line.
    fn reason(error: &Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
