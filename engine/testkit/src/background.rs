//! A thread with a runtime of its own, ended when its handle is dropped.

use std::thread::{self, JoinHandle};

use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Runs one future on its own thread. Dropping it ends the future, all that it spawned, and the thread.
pub(crate) struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn run<F>(name: &str, future: F) -> Background
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime =
                    Builder::new_current_thread().enable_all().build().expect("a runtime for the helper");
                runtime.block_on(async {
                    tokio::select! {
                        () = future => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("a thread for the helper");
        Background { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Short: the thread only has to see the signal. Its sockets are closed when this returns.
            let _ = thread.join();
        }
    }
}
