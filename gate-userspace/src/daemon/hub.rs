//! Who follows the events.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::channel::{Channel, Sender as BodySender};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender, channel};
use tokio::task::spawn_local;

use super::server::Body;
use crate::events::{self, Event};
use crate::report;

/// Events that are kept for a follower that is slow. What is older is lost for it, and it is told so.
const KEPT: usize = 1024;

/// Lines that wait in one connection.
const WAITING: usize = 16;

/// Passes events on to all that follow.
#[derive(Clone)]
pub(super) struct Hub(Sender<Arc<str>>);

impl Hub {
    pub(super) fn new() -> Self {
        Self(channel(KEPT).0)
    }

    /// Tells of an event.
    pub(super) fn tell(&self, event: &Event) {
        let line = report::answer(events::json(event)) + "\n";
        // Nobody follows.
        let _unseen = self.0.send(line.into());
    }

    /// The events from here on, a line each.
    pub(super) fn follow(&self) -> Body {
        let (sender, body) = Channel::<Bytes, Infallible>::new(WAITING);
        spawn_local(pass_on(self.0.subscribe(), sender));
        body.boxed()
    }
}

/// Passes events on until the follower has gone, or the daemon ends.
async fn pass_on(mut events: Receiver<Arc<str>>, mut to: BodySender<Bytes, Infallible>) {
    // So that a follower knows from when on nothing is missing.
    let mut line: Arc<str> = (report::answer(json!({ "following": true })) + "\n").into();
    loop {
        let bytes = Bytes::copy_from_slice(line.as_bytes());
        if to.send_data(bytes).await.is_err() {
            return;
        }
        line = match events.recv().await {
            Ok(line) => line,
            Err(RecvError::Lagged(lost)) => (report::answer(json!({ "lost": lost })) + "\n").into(),
            Err(RecvError::Closed) => return,
        };
    }
}
