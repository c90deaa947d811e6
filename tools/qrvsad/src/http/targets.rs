//! Handlers of iSCSI targets; see [`qrvsa_api::routes`] for the table.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use qrvsa_api::{AclRule, AddLun, CreateTarget, TgtSocket, UpdateTarget, UserRequest, routes};

use super::handlers::{Answer, Flags, created, nothing, ok};
use super::{Json, Shared, blocking};

/// The routes of targets.
pub fn routes() -> Router<Shared> {
    const TARGET: &str = "/v1/targets/{iqn}";
    let part = |part: &str| format!("{TARGET}/{part}");
    Router::new()
        .route(routes::TARGETS, get(list).post(create))
        .route(TARGET, get(show).patch(update).delete(destroy))
        .route(&part("luns"), post(add_lun))
        .route(&part("luns/{lun}"), delete(remove_lun))
        .route(&part("acl/{change}"), post(acl))
        .route(&part("users/{change}"), post(user))
        .route(&part("sessions"), get(sessions))
        .route(&part("sessions/{sid}"), delete(drop_session))
        .route(routes::TGT_SOCKET, get(tgt_socket))
}

/// `add` or `remove` in a path.
#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Add,
    Remove,
}

async fn list(State(s): State<Shared>) -> Answer {
    ok(&blocking(s, |d| Ok(d.targets().list())).await?)
}

async fn create(State(s): State<Shared>, Json(body): Json<CreateTarget>) -> Answer {
    created(&blocking(s, move |d| d.targets_to_change()?.create(&body)).await?)
}

async fn show(State(s): State<Shared>, Path(iqn): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.targets().info(&iqn)).await?)
}

async fn update(State(s): State<Shared>, Path(iqn): Path<String>, Json(body): Json<UpdateTarget>) -> Answer {
    ok(&blocking(s, move |d| d.targets_to_change()?.update(&iqn, &body)).await?)
}

async fn destroy(State(s): State<Shared>, Path(iqn): Path<String>, Query(flags): Query<Flags>) -> Answer {
    blocking(s, move |d| d.targets_to_change()?.destroy(&iqn, flags.force)).await?;
    nothing()
}

async fn add_lun(State(s): State<Shared>, Path(iqn): Path<String>, Json(body): Json<AddLun>) -> Answer {
    created(&blocking(s, move |d| d.targets_to_change()?.add_lun(&iqn, &body)).await?)
}

async fn remove_lun(State(s): State<Shared>, Path((iqn, lun)): Path<(String, u64)>) -> Answer {
    blocking(s, move |d| d.targets_to_change()?.remove_lun(&iqn, lun)).await?;
    nothing()
}

async fn acl(
    State(s): State<Shared>,
    Path((iqn, change)): Path<(String, Change)>,
    Json(body): Json<AclRule>,
) -> Answer {
    ok(&blocking(s, move |d| d.targets_to_change()?.change_acl(&iqn, change == Change::Add, &body)).await?)
}

async fn user(
    State(s): State<Shared>,
    Path((iqn, change)): Path<(String, Change)>,
    Json(body): Json<UserRequest>,
) -> Answer {
    ok(&blocking(s, move |d| d.targets_to_change()?.change_user(&iqn, change == Change::Add, &body)).await?)
}

async fn sessions(State(s): State<Shared>, Path(iqn): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.targets().sessions(&iqn)).await?)
}

async fn drop_session(State(s): State<Shared>, Path((iqn, sid)): Path<(String, u64)>) -> Answer {
    blocking(s, move |d| d.targets_to_change()?.drop_session(&iqn, sid)).await?;
    nothing()
}

async fn tgt_socket(State(s): State<Shared>) -> Answer {
    ok(&blocking(s, |d| Ok(TgtSocket { path: d.targets().tgt_socket() })).await?)
}
