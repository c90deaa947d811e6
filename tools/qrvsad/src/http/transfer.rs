//! Bodies that are bytes: the contents of volumes.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use axum::routing::get;
use http_body_util::BodyExt;
use qrvsa_api::transfer::OCTETS;
use qrvsa_api::{ApiError, ErrorKind};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::handlers::{Answer, Flags, ok, volume_name};
use super::{Shared, blocking};
use crate::daemon::transfer::Incoming;

/// Pieces of a body that wait to be written; the connection itself keeps a few more.
const WAITING_MAX: usize = 2;
/// How often a body that does not come is looked at for the daemon's end.
const TICK: Duration = Duration::from_millis(500);
/// How long the rest of a body is taken after an answer that came before its end, so that the answer arrives.
const REST_PATIENCE: Duration = Duration::from_secs(10);

/// `?offset=&length=`.
#[derive(Deserialize)]
struct Range {
    offset: u64,
    #[serde(default)]
    length: u64,
}

pub(super) fn routes() -> Router<Shared> {
    const VOLUME: &str = "/v1/pools/{pool}/volumes/{volume}";
    Router::new()
        .route(&format!("{VOLUME}/extents"), get(extents))
        .route(&format!("{VOLUME}/data"), get(read).put(fill))
}

async fn extents(
    State(s): State<Shared>,
    Path((pool, volume)): Path<(String, String)>,
    Query(range): Query<Range>,
) -> Answer {
    let name = volume_name(pool, volume)?;
    ok(&blocking(s, move |d| d.volume_extents(&name, range.offset)).await?)
}

async fn read(
    State(s): State<Shared>,
    Path((pool, volume)): Path<(String, String)>,
    Query(range): Query<Range>,
) -> Answer {
    let name = volume_name(pool, volume)?;
    let bytes = blocking(s, move |d| d.read_volume(&name, range.offset, range.length)).await?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OCTETS));
    Ok(response)
}

async fn fill(
    State(s): State<Shared>,
    Path((pool, volume)): Path<(String, String)>,
    Query(flags): Query<Flags>,
    mut body: Body,
) -> Answer {
    let name = volume_name(pool, volume)?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let daemon = s.daemon.clone();
    let work = blocking(s, move |d| d.fill_volume(&name, flags.force, &mut Pieces { receiver, piece: Bytes::new() }));
    tokio::pin!(work);
    let forward = async {
        loop {
            match tokio::time::timeout(TICK, body.frame()).await {
                Err(_) if daemon.is_stopping() => return,
                Err(_) => {}
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data()
                        && sender.send(piece).await.is_err()
                    {
                        return;
                    }
                    if daemon.is_stopping() {
                        return;
                    }
                }
                Ok(Some(Err(_)) | None) => return,
            }
        }
    };
    let early = {
        tokio::pin!(forward);
        tokio::select! {
            result = &mut work => Some(result),
            () = &mut forward => None,
        }
    };
    // No more comes: the work ends with what it has.
    drop(sender);
    let result = match early {
        Some(result) => result,
        None => work.await,
    };
    if result.is_err() {
        // Whoever still sends would not see the answer if the connection were closed on him.
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(REST_PATIENCE, rest).await;
        });
    }
    ok(&result?)
}

/// The body, for a thread that may block.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Incoming for Pieces {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), ApiError> {
        let mut rest = buf;
        while !rest.is_empty() {
            if self.piece.is_empty() {
                self.piece = self.receiver.blocking_recv().ok_or_else(|| {
                    ApiError::new(ErrorKind::Unavailable, "the transfer was broken off before its end")
                        .with_hint("repeat it")
                })?;
            }
            let bytes = self.piece.split_to(rest.len().min(self.piece.len()));
            let (filled, after) = rest.split_at_mut(bytes.len());
            filled.copy_from_slice(&bytes);
            rest = after;
        }
        Ok(())
    }
}
