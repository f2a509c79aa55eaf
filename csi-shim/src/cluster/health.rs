//! `/healthz`, `/readyz` and `/metrics`.

use super::figures::Figures;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves them for as long as the process lives.
pub async fn serve(listener: TcpListener, figures: Arc<Figures>) {
    let (alive, ready) = (figures.clone(), figures.clone());
    let routes = Router::new()
        .route("/healthz", get(async move || told(alive.alive())))
        .route("/readyz", get(async move || told(ready.ready())))
        .route("/metrics", get(async move || figures.text()));
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!("health and metrics are not served any more: {error}");
    }
}

fn told(well: bool) -> (StatusCode, &'static str) {
    match well {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the API does not answer\n"),
    }
}
