//! Pages that show the description of the API. They need nothing from elsewhere.

use axum::response::Html;

const PAGE: &str = include_str!("docs.html");

/// A list of all paths with what they read and answer.
pub async fn page() -> Html<&'static str> {
    Html(PAGE)
}
