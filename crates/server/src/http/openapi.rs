//! The list of routes, which is also the description of the API at `/openapi.json`: what is served and what is
//! described cannot differ.

use axum::Router;
use axum::handler::Handler;
use axum::routing::MethodRouter;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::version::SERVER_VERSION;
use crate::deps::Deps;

/// A request without a body, or an answer `null`.
pub type Nothing = ();

/// Routes, and what they are.
#[derive(Debug)]
pub struct Routes {
    router: Router<Deps>,
    paths: Map<String, Value>,
    /// The path and the method that were described last.
    last: (String, String),
    schemas: SchemaGenerator,
}

/// A part of a route's address behind `?`.
#[derive(Debug, Clone, Copy)]
pub struct QueryKey {
    /// Its name.
    pub name: &'static str,
    /// The official word for what it is, and its format if it has one.
    pub kind: (&'static str, Option<&'static str>),
    /// It cannot be left out.
    pub required: bool,
}

impl QueryKey {
    /// One that may be left out.
    pub const fn optional(name: &'static str, kind: &'static str) -> QueryKey {
        QueryKey { name, kind: (kind, None), required: false }
    }
}

impl Default for Routes {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Routes {
            router: Router::new(),
            paths: Map::new(),
            last: Default::default(),
            schemas: settings.into_generator(),
        }
    }
}

impl Routes {
    /// A route for POST that reads a `Request` and answers a `Response`.
    pub fn post<Request, Response, H, T>(mut self, path: &str, handler: H) -> Routes
    where
        Request: JsonSchema,
        Response: JsonSchema,
        H: Handler<T, Deps>,
        T: 'static,
    {
        let request = is_something::<Request>().then(|| {
            let schema = self.schemas.subschema_for::<Request>();
            json!({ "required": true, "content": { "application/json": { "schema": schema } } })
        });
        let response = self.schemas.subschema_for::<Response>();
        self.describe("post", path, request, &json!(response));
        self.router = self.router.route(path, axum::routing::post(handler));
        self
    }

    /// The last route may be sent without a body: everything has its default then.
    pub fn without_body(mut self) -> Routes {
        if let Some(body) = self.last_operation().and_then(|operation| operation.get_mut("requestBody")) {
            body["required"] = json!(false);
        }
        self
    }

    /// The last route needs no token of a user.
    pub fn public(mut self) -> Routes {
        if let Some(operation) = self.last_operation() {
            operation.insert("security".to_owned(), json!([]));
        }
        self
    }

    /// The last route reads these from its address.
    pub fn query(mut self, keys: &[QueryKey]) -> Routes {
        let parameters = self.last_operation().and_then(|operation| operation.get_mut("parameters"));
        if let Some(parameters) = parameters.and_then(Value::as_array_mut) {
            parameters.extend(keys.iter().map(|key| {
                let (kind, format) = key.kind;
                let mut schema = json!({ "type": kind });
                if let Some(format) = format {
                    schema["format"] = json!(format);
                }
                json!({ "name": key.name, "in": "query", "required": key.required, "schema": schema })
            }));
        }
        self
    }

    fn last_operation(&mut self) -> Option<&mut Map<String, Value>> {
        self.paths.get_mut(&self.last.0)?.get_mut(&self.last.1)?.as_object_mut()
    }

    /// A route for POST that reads a form with one file, and answers a `Response`.
    pub fn upload<Response, H, T>(mut self, path: &str, handler: H) -> Routes
    where
        Response: JsonSchema,
        H: Handler<T, Deps>,
        T: 'static,
    {
        let file = json!({ "type": "string", "format": "binary" });
        let schema = json!({ "type": "object", "properties": { "file": file }, "required": ["file"] });
        let request = json!({ "required": true, "content": { "multipart/form-data": { "schema": schema } } });
        let response = self.schemas.subschema_for::<Response>();
        self.describe("post", path, Some(request), &json!(response));
        self.router = self.router.route(path, axum::routing::post(handler));
        self
    }

    /// A route for GET (and HEAD) that answers a `Response`.
    pub fn get<Response, H, T>(mut self, path: &str, handler: H) -> Routes
    where
        Response: JsonSchema,
        H: Handler<T, Deps>,
        T: 'static,
    {
        let response = self.schemas.subschema_for::<Response>();
        self.describe("get", path, None, &json!(response));
        self.router = self.router.route(path, axum::routing::get(handler));
        self
    }

    /// A route for several methods, whose bodies and tokens are not ours to describe.
    pub fn methods(mut self, path: &str, methods: &[&str], route: MethodRouter<Deps>) -> Routes {
        for method in methods {
            self.describe(method, path, None, &json!({}));
            self = self.public();
        }
        self.router = self.router.route(path, route);
        self
    }

    fn describe(&mut self, method: &str, path: &str, request: Option<Value>, response: &Value) {
        let response = json!({ "description": "Successful Response", "content": { "application/json": {
            "schema": response
        } } });
        let group = path.split('/').rev().nth(1).unwrap_or_default().to_owned();
        let mut operation = json!({
            "tags": [group],
            "operationId": format!("{method}{}", path.replace(['/', '{', '}', '-', '.'], "_")),
            "parameters": parameters(path),
            "responses": { "200": response },
        });
        if let (Some(request), Some(operation)) = (request, operation.as_object_mut()) {
            operation.insert("requestBody".to_owned(), request);
        }
        self.last = (documented(path), method.to_owned());
        let of_path = self.paths.entry(documented(path)).or_insert_with(|| json!({}));
        if let Some(of_path) = of_path.as_object_mut() {
            of_path.insert(method.to_owned(), operation);
        }
    }

    /// The routes, and the text of the description.
    pub fn finish(mut self) -> (Router<Deps>, String) {
        let schemas = self.schemas.take_definitions(true);
        let description = json!({
            "openapi": "3.1.0",
            "info": { "title": "dstack", "version": SERVER_VERSION },
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": { "HTTPBearer": { "type": "http", "scheme": "bearer" } },
            },
            "security": [{ "HTTPBearer": [] }],
        });
        (self.router, description.to_string())
    }
}

fn is_something<T: JsonSchema>() -> bool {
    T::schema_id() != <Nothing as JsonSchema>::schema_id()
}

// A wildcard of the router (`{*path}`) is an ordinary parameter in the description.
fn documented(path: &str) -> String {
    path.replace("{*", "{")
}

fn parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            let name = name.trim_start_matches('*');
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        })
        .collect()
}
