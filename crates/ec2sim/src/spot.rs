//! Spot capacity: its prices, and the requests that launches leave behind.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::catalog::catalog;
use crate::error::ApiError;
use crate::filters::{Filter, Page, Tags, tag_set};
use crate::ledger::Kind;
use crate::xml;

/// A request for spot capacity, which each launch of spot instances makes for each of them.
#[derive(Debug)]
pub(crate) struct SpotRequest {
    pub(crate) id: String,
    pub(crate) instance_id: String,
    pub(crate) instance_type: String,
    pub(crate) image_id: String,
    pub(crate) zone: String,
    pub(crate) price: String,
    pub(crate) made_at: Timestamp,
    pub(crate) tags: Tags,
    pub(crate) state: RequestState,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// Its instance runs.
    Active,
    /// Its instance is told that it will be ended.
    MarkedForTermination,
    /// The user took the request back; the instance may still run.
    CancelledRunning,
    /// Its instance was ended by the user.
    EndedByUser,
    /// Its instance was taken away.
    EndedByAws,
}

impl SpotRequest {
    fn words(&self) -> (&'static str, &'static str, &'static str) {
        match self.state {
            RequestState::Active => ("active", "fulfilled", "Your spot request is fulfilled."),
            RequestState::MarkedForTermination => {
                ("active", "marked-for-termination", "Your instance is marked for termination.")
            }
            RequestState::CancelledRunning => (
                "cancelled",
                "request-canceled-and-instance-running",
                "Your Spot request is canceled, but your instance is still running.",
            ),
            RequestState::EndedByUser => (
                "closed",
                "instance-terminated-by-user",
                "Spot Instance terminated due to user-initiated termination.",
            ),
            RequestState::EndedByAws => (
                "closed",
                "instance-terminated-no-capacity",
                "Your Spot instance was terminated because there is no capacity.",
            ),
        }
    }

    fn render(&self) -> Value {
        let (state, code, message) = self.words();
        json!({
            "SpotInstanceRequestId": self.id,
            "State": state,
            "Status": {"Code": code, "Message": message, "UpdateTime": xml::time(self.made_at)},
            "Type": "one-time",
            "InstanceId": self.instance_id,
            "InstanceInterruptionBehavior": "terminate",
            "LaunchedAvailabilityZone": self.zone,
            "LaunchSpecification": {
                "ImageId": self.image_id,
                "InstanceType": self.instance_type,
                "Placement": {"AvailabilityZone": self.zone},
            },
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": self.price,
            "CreateTime": xml::time(self.made_at),
            "Tags": tag_set(&self.tags),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    spot_instance_request_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

fn not_found(id: &str) -> ApiError {
    let message = format!("The spot instance request ID '{id}' does not exist");
    ApiError::client("InvalidSpotInstanceRequestID.NotFound", message)
}

/// DescribeSpotInstanceRequests.
pub(crate) fn describe_spot_instance_requests(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let requests =
        crate::network::select(&call.region().spot_requests, &asked.spot_instance_request_ids, not_found)?;
    let rows = requests.into_iter().map(SpotRequest::render).collect();
    let paths = [
        ("spot-instance-request-id", "SpotInstanceRequestId"),
        ("instance-id", "InstanceId"),
        ("state", "State"),
        ("status-code", "Status.Code"),
        ("launched-availability-zone", "LaunchedAvailabilityZone"),
        ("launch.instance-type", "LaunchSpecification.InstanceType"),
        ("launch.image-id", "LaunchSpecification.ImageId"),
        ("type", "Type"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"SpotInstanceRequests": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Cancellation {
    spot_instance_request_ids: Vec<String>,
}

/// CancelSpotInstanceRequests: the instances run on.
pub(crate) fn cancel_spot_instance_requests(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let ids = call.read::<Cancellation>()?.spot_instance_request_ids;
    if let Some(id) = ids.iter().find(|id| !call.world.regions[&call.region].spot_requests.contains_key(*id)) {
        return Err(not_found(id));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let mut rows = Vec::new();
    for id in ids {
        if let Some(request) = region.spot_requests.get_mut(&id) {
            if matches!(request.state, RequestState::Active | RequestState::MarkedForTermination) {
                request.state = RequestState::CancelledRunning;
                rest.ledger.gone(Kind::SpotInstancesRequest, &id, rest.now);
            }
            rows.push(json!({"SpotInstanceRequestId": id, "State": request.words().0}));
        }
    }
    Ok(json!({"CancelledSpotInstanceRequests": rows}))
}

/// US dollars an hour for a spot instance in a zone: what the snapshot knows, a little more in each further zone.
pub(crate) fn price(region: &str, instance_type: &str, zone_index: usize) -> Option<f64> {
    let price = catalog().prices.get(&(instance_type.to_owned(), region.to_owned()))?;
    Some(price.spot? * (1.0 + 0.01 * zone_index as f64))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedPrices {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    instance_types: Vec<String>,
    #[serde(default)]
    product_descriptions: Vec<String>,
    availability_zone: Option<String>,
    start_time: Option<Timestamp>,
    end_time: Option<Timestamp>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeSpotPriceHistory: one price for each type and zone, set an hour ago.
pub(crate) fn describe_spot_price_history(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedPrices = call.read()?;
    let set_at = call.now() - SignedDuration::from_hours(1);
    let is_over = asked.end_time.is_some_and(|end| end < set_at);
    if asked.start_time.zip(asked.end_time).is_some_and(|(start, end)| end < start) {
        return Err(ApiError::combination("The start time must be before the end time"));
    }
    let product = "Linux/UNIX";
    let is_product = |asked: &String| asked == product || asked == "Linux/UNIX (Amazon VPC)";
    let wants_product = asked.product_descriptions.is_empty() || asked.product_descriptions.iter().any(is_product);
    let region = call.region.clone();
    let offers = &catalog().regions[&region];
    let mut rows = Vec::new();
    let types = catalog()
        .types
        .keys()
        .filter(|name| asked.instance_types.is_empty() || asked.instance_types.contains(name));
    for name in types.filter(|_| wants_product && !is_over) {
        for (index, zone) in offers.zones_with(&region, name).iter().enumerate() {
            let is_zone = asked.availability_zone.as_ref().is_none_or(|wanted| wanted == zone);
            let Some(price) = price(&region, name, index).filter(|_| is_zone) else { continue };
            rows.push(json!({
                "InstanceType": name,
                "AvailabilityZone": zone,
                "ProductDescription": product,
                "SpotPrice": format!("{price:.6}"),
                "Timestamp": xml::time(set_at),
            }));
        }
    }
    let paths = [
        ("instance-type", "InstanceType"),
        ("availability-zone", "AvailabilityZone"),
        ("product-description", "ProductDescription"),
        ("spot-price", "SpotPrice"),
    ];
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 1000))?;
    Ok(json!({"SpotPriceHistory": rows, "NextToken": next}))
}
