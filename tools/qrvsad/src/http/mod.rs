//! The resources of the interface: who may use them, when, and how they map to [`Daemon`].
//!
//! Handlers only translate. The daemon's methods block, so each runs on a thread for blocking work; a panic in one is an
//! answer with status 500, not the end of the daemon. Every error has the one error body, those of the HTTP layer too.

mod handlers;
mod targets;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequest, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::serve::IncomingStream;
use qrvsa_api::{ApiError, ErrorKind, routes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::daemon::Daemon;

/// How long a request waits for the daemon to have its pools, before it is answered with what there is.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// What handlers share.
#[derive(Clone)]
pub struct Shared {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// Turns true when the pools are imported and the mounts restored.
    pub ready: watch::Receiver<bool>,
    /// The user besides root who may use the interface.
    pub owner_uid: u32,
}

/// Who is at the other end of a connection, by the kernel's word.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        Peer { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// The whole interface.
pub fn router(shared: Shared) -> Router {
    use handlers as h;
    const POOL: &str = "/v1/pools/{pool}";
    let fs = |rest: &str| format!("{POOL}/filesystems{rest}");
    let part = |part: &str| format!("{POOL}/{part}");
    Router::new()
        .route(routes::DAEMON, get(h::daemon))
        .route(routes::POOLS, get(h::list_pools).post(h::create_pool))
        .route(routes::IMPORT, post(h::import))
        .route(POOL, get(h::pool_status).delete(h::destroy_pool))
        .route(&part("export"), post(h::export))
        .route(&part("sync"), post(h::sync))
        .route(&part("offline"), post(h::offline))
        .route(&part("online"), post(h::online))
        .route(&part("replace"), post(h::replace))
        .route(&part("scrub"), post(h::scrub))
        .route(&part("check"), post(h::check))
        .route(&fs(""), get(h::list_fs).post(h::create_fs))
        .route(&fs("/{fs}"), delete(h::destroy_fs))
        .route(&fs("/{fs}/properties"), get(h::get_properties).patch(h::set_property))
        .route(&fs("/{fs}/inodes/{ino}/fragments"), get(h::fragments))
        .route(&part("volumes"), get(h::list_volumes).post(h::create_volume))
        .route(&part("volumes/{volume}"), get(h::volume).delete(h::destroy_volume))
        .route(&part("volumes/{volume}/resize"), post(h::resize_volume))
        .route(&part("volumes/{volume}/fragments"), get(h::volume_fragments))
        .route(routes::JOBS, get(h::jobs))
        .route(&format!("{}/{{id}}", routes::JOBS), get(h::job))
        .route(routes::MOUNTS, get(h::list_mounts).post(h::mount))
        .route(&format!("{}/{{id}}", routes::MOUNTS), patch(h::update_mount).delete(h::unmount))
        .merge(targets::routes())
        .merge(transfer::routes())
        .route(routes::DEBUG_LABELS, post(h::labels))
        .route(routes::DEBUG_UBERBLOCKS, post(h::uberblocks))
        .layer(from_fn_with_state(shared.clone(), wait_until_ready))
        .layer(from_fn_with_state(shared.clone(), admit_peer))
        .layer(from_fn(with_error_body))
        .with_state(shared)
}

/// Serves root and the daemon's own user only. The mode of the socket says the same; this holds if it was changed.
async fn admit_peer(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer.uid {
        Some(uid) if uid == 0 || uid == shared.owner_uid => next.run(request).await,
        _ => {
            let user = peer.uid.map_or_else(|| "an unknown user".to_owned(), |uid| format!("user {uid}"));
            Failed(ApiError::new(ErrorKind::Forbidden, format!("{user} may not use the daemon"))).into_response()
        }
    }
}

/// Holds requests back until the pools are there, so that whoever connects early (a boot script, a mount unit) need not
/// poll. Not for ever: when an import takes long, lists show it, and changes are refused by the daemon.
async fn wait_until_ready(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET || request.uri().path() != routes::DAEMON {
        let mut ready = shared.ready.clone();
        let _ = tokio::time::timeout(READY_PATIENCE, ready.wait_for(|ready| *ready)).await;
    }
    next.run(request).await
}

/// Gives errors of the HTTP layer (no such route, wrong method, body too large) the error body.
async fn with_error_body(request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|v| v == "application/json");
    if status.as_u16() < 400 || is_json {
        return response;
    }
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => ErrorKind::Unsupported,
        _ if status.is_client_error() => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    };
    let reason = status.canonical_reason().unwrap_or("the request was refused");
    let error = ApiError::new(kind, format!("{what}: {reason}"));
    json(status, &error)
}

/// An error as an answer.
struct Failed(ApiError);

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Failed {
        Failed(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.0)
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(e) => {
            tracing::error!("an answer cannot be written as JSON: {e}");
            let body = br#"{"kind":"internal","message":"the answer cannot be written as JSON","hint":"rename what has a name that is not valid UTF-8"}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, body.to_vec())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON body.
struct Json<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Response> {
        let bytes = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        serde_json::from_slice(&bytes).map(Json).map_err(|e| {
            let error = ApiError::invalid(format!("the body of the request is not valid: {e}"))
                .with_hint("check that `qrvsa` and `qrvsad` have the same version");
            Failed(error).into_response()
        })
    }
}

/// Runs a blocking call of the daemon.
async fn blocking<T: Send + 'static>(
    shared: Shared,
    call: impl FnOnce(&Arc<Daemon>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(move || call(&shared.daemon)).await {
        Ok(result) => result.map_err(Failed),
        Err(_) => Err(Failed(ApiError::new(ErrorKind::Internal, "the daemon failed while it worked on the request"))),
    }
}
