//! Parameters that publishers of images keep with the latest of them.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::world::Region;
use crate::xml;

/// The parameters, and the beginnings of the names of the images that they tell the latest of.
const PARAMETERS: [(&str, &str, &str); 5] = [
    (
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-",
        "x86_64",
    ),
    (
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-",
        "arm64",
    ),
    (
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) ",
        "x86_64",
    ),
    (
        "/aws/service/deeplearning/ami/arm64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) ",
        "arm64",
    ),
    ("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64", "al2023-ami-", "x86_64"),
];

fn find(region: &Region, name: &str) -> Option<Value> {
    let (_, prefix, architecture) = PARAMETERS.into_iter().find(|(known, ..)| *known == name)?;
    let is_meant = |image: &&crate::images::Image| {
        image.new.name.starts_with(prefix)
            && image.new.architecture == architecture
            && image.new.state == "available"
    };
    let image = region.images.values().filter(is_meant).max_by_key(|image| image.new.created_at.clone())?;
    Some(json!({
        "Name": name,
        "Type": "String",
        "Value": image.id,
        "Version": 1,
        "DataType": "aws:ec2:image",
        "ARN": format!("arn:aws:ssm:{}::parameter{name}", region.name),
        "LastModifiedDate": xml::time(image.new.created_at.parse().ok()?),
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    name: String,
    // Nothing here is encrypted.
    #[serde(default, rename = "WithDecryption")]
    _with_decryption: bool,
}

/// GetParameter.
pub(crate) fn get_parameter(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let parameter = find(call.region(), &asked.name);
    let parameter = parameter.ok_or_else(|| ApiError::client("ParameterNotFound", ""))?;
    Ok(json!({"Parameter": parameter}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedMany {
    names: Vec<String>,
    #[serde(default, rename = "WithDecryption")]
    _with_decryption: bool,
}

/// GetParameters.
pub(crate) fn get_parameters(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedMany = call.read()?;
    if 10 < asked.names.len() {
        return Err(ApiError::client("ValidationException", "Member must have length less than or equal to 10"));
    }
    let region = call.region();
    let found: Vec<Value> = asked.names.iter().filter_map(|name| find(region, name)).collect();
    let invalid: Vec<&String> = asked.names.iter().filter(|name| find(region, name).is_none()).collect();
    Ok(json!({"Parameters": found, "InvalidParameters": invalid}))
}
