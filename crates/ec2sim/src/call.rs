//! The way of a call: who asks, may they, is it too much, what is asked, what comes of it.
//!
//! A call is one function from request to reply over the whole of the state; nothing in here waits.

use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::actions::{self, Effect};
use crate::auth::{self, Credential, Request, Scope};
use crate::error::ApiError;
use crate::faults::{self, Happening};
use crate::filters::{Filter, Filters, Page};
use crate::model::{self, Operation, Protocol, Service};
use crate::settings::millis;
use crate::world::{CallRecord, Region, World};
use crate::{catalog, query, xml};

/// The largest request.
const MAX_BODY: usize = 1024 * 1024;

/// What a caller gets, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How long the reply is held back. What was asked is done already.
    pub delay: Duration,
    /// What comes then.
    pub outcome: Outcome,
}

/// What comes back from a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer or a refusal.
    Answer(Answer),
    /// Nothing: the connection is cut.
    Cut,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'static str,
    /// The name of the request.
    pub request_id: String,
    /// The body.
    pub body: String,
}

/// A call that is being dealt with.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) region: String,
    pub(crate) caller: Credential,
    pub(crate) service: &'a str,
    pub(crate) action: &'a str,
    operation: &'static Operation,
    parameters: Value,
    /// Whether the caller only wants to know whether they might.
    is_dry: bool,
}

impl Call<'_> {
    /// The parameters. One that the simulator has no field for would be ignored in silence, so it is refused.
    pub(crate) fn read<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        let action = self.action;
        serde_json::from_value(self.parameters.take())
            .map_err(|error| ApiError::not_simulated(format!("these parameters of {action}: {error}")))
    }

    /// The parameters as they were read, for comparison with those of another call.
    pub(crate) fn parameters(&self) -> &Value {
        &self.parameters
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.world.now
    }

    pub(crate) fn region(&mut self) -> &mut Region {
        self.world.regions.get_mut(&self.region).expect("the region was opened when the call came in")
    }

    /// The region beside the rest of the world.
    pub(crate) fn split(&mut self) -> (&mut Region, Rest<'_>) {
        let World { regions, ids, ledger, settings, now, .. } = &mut *self.world;
        let region = regions.get_mut(&self.region).expect("the region was opened when the call came in");
        (region, Rest { ids, ledger, settings, now: *now, action: self.action })
    }

    /// Ends a call that is only asked for whether it might be done. To be called when all is checked and nothing done.
    pub(crate) fn proceed(&self) -> Result<(), ApiError> {
        if self.is_dry {
            const MESSAGE: &str = "Request would have succeeded, but DryRun flag is set.";
            return Err(ApiError::with_status(412, "DryRunOperation", MESSAGE));
        }
        Ok(())
    }

    /// Refuses a caller that lacks a permission beside the one for the action.
    pub(crate) fn permit(&self, permission: &str) -> Result<(), ApiError> {
        permit(&self.caller, self.service, permission)
    }

    /// Takes tokens for the things that the call makes or ends.
    pub(crate) fn take_resources(&mut self, count: usize) -> Result<(), ApiError> {
        if !self.world.settings.throttle {
            return Ok(());
        }
        let now = self.world.now;
        self.world.throttle.take_resources(&self.region, self.action, count, now)
    }

    /// Reads filters, of which the action must know each.
    pub(crate) fn filters(&self, given: Vec<Filter>) -> Result<Filters, ApiError> {
        Filters::read(given, self.operation.filters.as_deref().unwrap_or_default())
    }

    /// Filters rows and cuts out the page.
    pub(crate) fn list(
        &self,
        rows: Vec<Value>,
        filters: Vec<Filter>,
        paths: &[(&str, &str)],
        page: &Page,
    ) -> Result<(Vec<Value>, Option<String>), ApiError> {
        let rows = self.filters(filters)?.keep(rows, paths)?;
        page.cut(self.action, rows, (5, 1000))
    }

    pub(crate) fn account(&self) -> String {
        self.world.settings.account.clone()
    }
}

/// The parts of the world that a handler changes beside the region.
pub(crate) struct Rest<'a> {
    pub(crate) ids: &'a mut crate::ids::Ids,
    pub(crate) ledger: &'a mut crate::ledger::Ledger,
    pub(crate) settings: &'a crate::settings::Settings,
    pub(crate) now: Timestamp,
    pub(crate) action: &'a str,
}

impl World {
    /// Answers a request.
    pub(crate) fn handle(&mut self, request: &Request, now: Timestamp) -> Reply {
        self.advance(now);
        let request_id = self.ids.request();
        let mut delay = millis(self.settings.answer_ms);
        let scope = match auth::read_scope(request) {
            Ok(scope) => scope,
            Err(error) => return refuse_unknown(&error, request_id, delay),
        };
        let Some(service) = model::service(&scope.service) else {
            let message = format!("Credential should be scoped to correct service, not '{}'.", scope.service);
            let error = ApiError::with_status(403, "SignatureDoesNotMatch", message);
            return refuse_unknown(&error, request_id, delay);
        };
        let mut record = CallRecord {
            at: now,
            service: scope.service.clone(),
            region: scope.region.clone(),
            action: String::new(),
            access_key: scope.access_key.clone(),
            parameters: Value::Null,
            error: None,
        };
        let mut is_cut = false;
        let result =
            self.answer(request, &scope, service, &mut record).and_then(|(value, operation, happening)| {
                match happening {
                    Some(Happening::Delay { ms }) => delay += millis(ms),
                    Some(Happening::LostReply) => is_cut = true,
                    Some(Happening::ErrorAfter { code, message, status }) => {
                        return Err(Failure::Refused(faults::refusal(&code, &message, status)));
                    }
                    Some(Happening::ErrorBefore { .. } | Happening::LostRequest) | None => {}
                }
                write(service, &record.action, operation, &value, &request_id).map_err(Failure::Refused)
            });
        let outcome = match result {
            Ok(_) if is_cut => Outcome::Cut,
            Ok(body) => {
                Outcome::Answer(Answer { status: 200, content_type: content_type(service), request_id, body })
            }
            Err(Failure::Cut) => Outcome::Cut,
            Err(Failure::Refused(error)) => {
                record.error = Some(error.code.clone().into_owned());
                Outcome::Answer(refuse(service, &error, request_id))
            }
        };
        self.calls.add(record);
        Reply { delay, outcome }
    }

    /// Does what is asked; what comes after it is the caller's to play out.
    fn answer(
        &mut self,
        request: &Request,
        scope: &Scope,
        service: &'static Service,
        record: &mut CallRecord,
    ) -> Result<(Value, &'static Operation, Option<Happening>), Failure> {
        let (action, form) = read_action(request, service)?;
        record.action.clone_from(&action);
        let skew_matters = self.settings.check_time;
        let caller =
            auth::check(request, scope, service.protocol, &self.credentials, self.now, skew_matters)?.clone();
        if !self.may_use_region(&scope.service, &scope.region) {
            return Err(auth::wrong_region(service.protocol, &scope.region).into());
        }
        let operation = service.operations.get(&action);
        let handler = actions::find(&scope.service, &action);
        let (Some(operation), Some((handler, effect))) = (operation, handler) else {
            let message =
                format!("The action {action} is not valid for this web service, or ec2sim does not have it.");
            return Err(ApiError::client("InvalidAction", message).into());
        };
        let happening = self.faults.hit(&scope.region, &action);
        match &happening {
            Some(Happening::ErrorBefore { code, message, status }) => {
                return Err(faults::refusal(code, message, *status).into());
            }
            Some(Happening::LostRequest) => return Err(Failure::Cut),
            _ => {}
        }
        let input = operation.input.as_deref();
        let mut parameters = match &form {
            Some(form) => query::read_parameters(service, input, form)?,
            None => query::read_json(service, input, &request.body)?,
        };
        record.parameters.clone_from(&parameters);
        if self.settings.throttle {
            let lists_all = parameters.as_object().is_some_and(serde_json::Map::is_empty);
            self.throttle.take_request(&scope.region, &scope.service, &action, lists_all, self.now)?;
        }
        permit(&caller, &scope.service, &format!("{}:{action}", scope.service))?;
        let dry = parameters.as_object_mut().and_then(|object| object.remove("DryRun"));
        let is_dry = dry == Some(Value::Bool(true));
        self.region(&scope.region)?;
        let mut call = Call {
            world: self,
            region: scope.region.clone(),
            caller,
            service: &scope.service,
            action: &action,
            operation,
            parameters,
            is_dry,
        };
        let value = handler(&mut call)?;
        if is_dry {
            call.proceed()?;
            debug_assert!(effect == Effect::Reads, "{action} must ask `proceed` before it acts");
        }
        Ok((value, operation, happening))
    }

    fn may_use_region(&self, service: &str, region: &str) -> bool {
        let is_known = catalog::catalog().regions.contains_key(region);
        let is_open = catalog::is_open(region) || self.settings.opted_in.iter().any(|name| name == region);
        // Two services answer in few places.
        let is_at_home = match service {
            "iam" => region == "us-east-1",
            "pricing" => ["us-east-1", "eu-central-1", "ap-south-1"].contains(&region),
            _ => true,
        };
        is_known && is_open && is_at_home
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum Failure {
    Refused(ApiError),
    Cut,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Refused(error)
    }
}

fn permit(caller: &Credential, service: &str, permission: &str) -> Result<(), ApiError> {
    if caller.allows(permission) {
        return Ok(());
    }
    let who = &caller.arn;
    let message = format!(
        "User: {who} is not authorized to perform: {permission} because no identity-based policy allows the \
         {permission} action"
    );
    Err(match service {
        "ec2" => {
            let message = format!(
                "You are not authorized to perform this operation. {message}. Encoded authorization failure message: \
                 {}",
                "ec2sim".repeat(8)
            );
            ApiError::with_status(403, "UnauthorizedOperation", message)
        }
        "sts" | "iam" => ApiError::with_status(403, "AccessDenied", message),
        _ => ApiError::client("AccessDeniedException", message),
    })
}

/// The action that is asked for, with the form if the service takes forms.
fn read_action(request: &Request, service: &Service) -> Result<(String, Option<query::Form>), ApiError> {
    if MAX_BODY < request.body.len() {
        return Err(ApiError::with_status(413, "RequestEntityTooLarge", "The request is too large"));
    }
    if request.method != "POST" || request.path != "/" {
        return Err(ApiError::not_simulated(format!("{} of {}", request.method, request.path)));
    }
    if service.protocol == Protocol::Json {
        let target = request.header("x-amz-target").unwrap_or_default();
        let action = target.strip_prefix(service.target.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let unknown = || ApiError::client("UnknownOperationException", format!("no operation `{target}`"));
        let is_json =
            request.header("content-type").is_some_and(|kind| kind.starts_with("application/x-amz-json-1."));
        if !is_json {
            return Err(ApiError::client("SerializationException", "Send `application/x-amz-json-1.1`"));
        }
        return Ok((action.ok_or_else(unknown)?.to_owned(), None));
    }
    let form = query::read_form(&request.body)?;
    let action = form
        .get("Action")
        .cloned()
        .ok_or_else(|| ApiError::client("MissingAction", "The request must contain the parameter Action"))?;
    let version = form.get("Version").map_or("", String::as_str);
    if version != service.version {
        let message = format!("The requested version ({version}) of this service does not exist");
        return Err(ApiError::client("NoSuchVersion", message));
    }
    Ok((action, Some(form)))
}

fn write(
    service: &Service,
    action: &str,
    operation: &Operation,
    value: &Value,
    request_id: &str,
) -> Result<String, ApiError> {
    let output = operation.output.as_deref();
    if service.protocol == Protocol::Json {
        return Ok(xml::json_answer(service, output, value)?.to_string());
    }
    xml::answer(service, action, output, value, request_id)
}

fn content_type(service: &Service) -> &'static str {
    match service.protocol {
        Protocol::Ec2 => "text/xml;charset=UTF-8",
        Protocol::Query => "text/xml",
        Protocol::Json => "application/x-amz-json-1.1",
    }
}

fn refuse(service: &Service, error: &ApiError, request_id: String) -> Answer {
    let body = if service.protocol == Protocol::Json {
        serde_json::json!({"__type": error.code, "message": error.message}).to_string()
    } else {
        xml::refusal(service, error, &request_id)
    };
    Answer { status: error.status, content_type: content_type(service), request_id, body }
}

/// A refusal of a request whose service is not known: EC2's is as good as any.
fn refuse_unknown(error: &ApiError, request_id: String, delay: Duration) -> Reply {
    let service = model::service("ec2").expect("the model has EC2");
    Reply { delay, outcome: Outcome::Answer(refuse(service, error, request_id)) }
}
