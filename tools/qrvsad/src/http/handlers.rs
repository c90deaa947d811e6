//! One handler per resource and method; see [`qrvsa_api::routes`] for the table.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use qrvsa_api::names::{FsName, check_name};
use qrvsa_api::{
    ApiError, CheckRequest, CreateFs, CreatePool, CreateVolume, DeviceRef, ImportPools, MountRequest, ReplaceDevice,
    ResizeVolume, ScrubRequest, SetProperty, UpdateMount, routes,
};
use serde::{Deserialize, Serialize};

use super::{Failed, Json, Shared, blocking, json};

pub(super) type Answer = Result<Response, Failed>;

/// `?force=true`, `?lazy=true`.
#[derive(Deserialize)]
pub struct Flags {
    #[serde(default)]
    pub(super) force: bool,
    #[serde(default)]
    lazy: bool,
}

pub(super) fn ok(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, value))
}

pub(super) fn created(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::CREATED, value))
}

fn accepted(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::ACCEPTED, value))
}

pub(super) fn nothing() -> Answer {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn fs_name(pool: String, fs: String) -> Result<FsName, ApiError> {
    check_name("pool", &pool)?;
    if fs == routes::ROOT_FS {
        return Ok(FsName { pool, fs: None });
    }
    check_name("filesystem", &fs)?;
    Ok(FsName { pool, fs: Some(fs) })
}

pub(super) fn volume_name(pool: String, volume: String) -> Result<FsName, ApiError> {
    check_name("pool", &pool)?;
    check_name("volume", &volume)?;
    Ok(FsName { pool, fs: Some(volume) })
}

pub async fn daemon(State(s): State<Shared>) -> Answer {
    ok(&s.daemon.info())
}

pub async fn list_pools(State(s): State<Shared>) -> Answer {
    ok(&blocking(s, |d| d.list_pools()).await?)
}

pub async fn create_pool(State(s): State<Shared>, Json(body): Json<CreatePool>) -> Answer {
    created(&blocking(s, move |d| d.create_pool(&body)).await?)
}

pub async fn import(State(s): State<Shared>, Json(body): Json<ImportPools>) -> Answer {
    ok(&blocking(s, move |d| d.import(&body)).await?)
}

pub async fn pool_status(State(s): State<Shared>, Path(pool): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.pool_status(&pool)).await?)
}

pub async fn destroy_pool(State(s): State<Shared>, Path(pool): Path<String>, Query(flags): Query<Flags>) -> Answer {
    blocking(s, move |d| d.destroy_pool(&pool, flags.force)).await?;
    nothing()
}

pub async fn export(State(s): State<Shared>, Path(pool): Path<String>, Query(flags): Query<Flags>) -> Answer {
    blocking(s, move |d| d.export(&pool, flags.force)).await?;
    nothing()
}

pub async fn sync(State(s): State<Shared>, Path(pool): Path<String>) -> Answer {
    blocking(s, move |d| d.sync(&pool)).await?;
    nothing()
}

pub async fn offline(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<DeviceRef>) -> Answer {
    ok(&blocking(s, move |d| d.set_device(&pool, &body.device, false)).await?)
}

pub async fn online(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<DeviceRef>) -> Answer {
    ok(&blocking(s, move |d| d.set_device(&pool, &body.device, true)).await?)
}

pub async fn replace(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<ReplaceDevice>) -> Answer {
    accepted(&blocking(s, move |d| d.replace(&pool, &body)).await?)
}

pub async fn scrub(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<ScrubRequest>) -> Answer {
    accepted(&blocking(s, move |d| d.scrub(&pool, body.action)).await?)
}

pub async fn check(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<CheckRequest>) -> Answer {
    accepted(&blocking(s, move |d| d.check(&pool, body.deep)).await?)
}

pub async fn list_fs(State(s): State<Shared>, Path(pool): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.list_fs(&pool)).await?)
}

pub async fn create_fs(State(s): State<Shared>, Path(pool): Path<String>, Json(body): Json<CreateFs>) -> Answer {
    created(&blocking(s, move |d| d.create_fs(&pool, &body)).await?)
}

pub async fn destroy_fs(
    State(s): State<Shared>,
    Path((pool, fs)): Path<(String, String)>,
    Query(flags): Query<Flags>,
) -> Answer {
    let name = fs_name(pool, fs)?;
    blocking(s, move |d| d.destroy_fs(&name, flags.force)).await?;
    nothing()
}

pub async fn get_properties(State(s): State<Shared>, Path((pool, fs)): Path<(String, String)>) -> Answer {
    let name = fs_name(pool, fs)?;
    ok(&blocking(s, move |d| d.get_properties(&name)).await?)
}

pub async fn set_property(
    State(s): State<Shared>,
    Path((pool, fs)): Path<(String, String)>,
    Json(body): Json<SetProperty>,
) -> Answer {
    let name = fs_name(pool, fs)?;
    ok(&blocking(s, move |d| d.set_property(&name, &body)).await?)
}

pub async fn fragments(State(s): State<Shared>, Path((pool, fs, ino)): Path<(String, String, u64)>) -> Answer {
    let name = fs_name(pool, fs)?;
    ok(&blocking(s, move |d| d.locate(&name, ino)).await?)
}

pub async fn list_volumes(State(s): State<Shared>, Path(pool): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.list_volumes(&pool)).await?)
}

pub async fn create_volume(
    State(s): State<Shared>,
    Path(pool): Path<String>,
    Json(body): Json<CreateVolume>,
) -> Answer {
    created(&blocking(s, move |d| d.create_volume(&pool, &body)).await?)
}

pub async fn volume(State(s): State<Shared>, Path((pool, volume)): Path<(String, String)>) -> Answer {
    let name = volume_name(pool, volume)?;
    ok(&blocking(s, move |d| d.volume(&name)).await?)
}

pub async fn resize_volume(
    State(s): State<Shared>,
    Path((pool, volume)): Path<(String, String)>,
    Json(body): Json<ResizeVolume>,
) -> Answer {
    let name = volume_name(pool, volume)?;
    ok(&blocking(s, move |d| d.resize_volume(&name, &body)).await?)
}

pub async fn destroy_volume(
    State(s): State<Shared>,
    Path((pool, volume)): Path<(String, String)>,
    Query(flags): Query<Flags>,
) -> Answer {
    let name = volume_name(pool, volume)?;
    blocking(s, move |d| d.destroy_volume(&name, flags.force)).await?;
    nothing()
}

pub async fn volume_fragments(State(s): State<Shared>, Path((pool, volume)): Path<(String, String)>) -> Answer {
    let name = volume_name(pool, volume)?;
    ok(&blocking(s, move |d| d.locate_volume(&name)).await?)
}

pub async fn jobs(State(s): State<Shared>) -> Answer {
    ok(&blocking(s, |d| Ok(d.jobs())).await?)
}

pub async fn job(State(s): State<Shared>, Path(id): Path<String>) -> Answer {
    ok(&blocking(s, move |d| d.job(&id)).await?)
}

pub async fn list_mounts(State(s): State<Shared>) -> Answer {
    ok(&blocking(s, |d| Ok(d.list_mounts())).await?)
}

pub async fn mount(State(s): State<Shared>, Json(body): Json<MountRequest>) -> Answer {
    created(&blocking(s, move |d| d.mount(&body)).await?)
}

pub async fn update_mount(State(s): State<Shared>, Path(id): Path<u64>, Json(body): Json<UpdateMount>) -> Answer {
    ok(&blocking(s, move |d| d.change_options(id, &body.options)).await?)
}

pub async fn unmount(State(s): State<Shared>, Path(id): Path<u64>, Query(flags): Query<Flags>) -> Answer {
    blocking(s, move |d| d.unmount(id, flags.lazy)).await?;
    nothing()
}

pub async fn labels(State(s): State<Shared>, Json(body): Json<DeviceRef>) -> Answer {
    ok(&blocking(s, move |d| d.labels(&body.device)).await?)
}

pub async fn uberblocks(State(s): State<Shared>, Json(body): Json<DeviceRef>) -> Answer {
    ok(&blocking(s, move |d| d.uberblocks(&body.device)).await?)
}
