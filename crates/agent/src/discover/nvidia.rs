//! NVIDIA's GPUs, and whether they are joined, as `nvidia-smi` prints it.

use api::agent::{GpuFabric, HostGpu};

use crate::discover::{Roots, output_of};

/// What is asked of every GPU, in this order.
const FIELDS: &str = "index,name,memory.total,uuid,driver_version,pci.bus_id";

/// What is asked beside it, of drivers that know of it.
const FABRIC_FIELDS: &str = "fabric.state,fabric.status";

/// How the tool ends that is asked for what it does not know.
const UNKNOWN_FIELD: &str = "exit status: 2";

/// The tool.
const TOOL: &str = "nvidia-smi";

/// All that `nvidia-smi` tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Nvidia {
    /// The GPUs by index.
    pub(crate) gpus: Vec<HostGpu>,
    /// The driver's version.
    pub(crate) driver: Option<String>,
    /// The newest CUDA version that the driver can run.
    pub(crate) cuda_version: Option<String>,
    /// Those that are joined by a fabric.
    pub(crate) fabrics: Vec<GpuFabric>,
}

/// The machine's GPUs. The error is a sentence about a machine that has some and does not show them.
pub(crate) fn find(roots: &Roots) -> Result<Nvidia, String> {
    let has_driver = std::path::Path::new("/dev/nvidiactl").exists()
        || roots.proc.join("driver/nvidia/version").exists()
        || std::path::Path::new("/dev/dxg").exists();
    if !has_driver {
        return Ok(Nvidia::default());
    }
    // Each question takes long where no daemon keeps the driver awake.
    let text = match ask(&format!("{FIELDS},{FABRIC_FIELDS}")) {
        Err(error) if error.contains(UNKNOWN_FIELD) => ask(FIELDS)?,
        answer => answer?,
    };
    let mut found = parse_query(&text);
    found.cuda_version = output_of(TOOL, &[]).ok().and_then(|text| parse_cuda(&text));
    for gpu in &mut found.gpus {
        let node = gpu.pci.as_ref().and_then(|pci| {
            let file = roots.sys.join("bus/pci/devices").join(pci).join("numa_node");
            std::fs::read_to_string(file).ok()?.trim().parse().ok()
        });
        gpu.numa_node = node;
    }
    Ok(found)
}

/// How the GPUs are joined now, of a machine whose driver tells; none if it does not answer.
pub(crate) fn fabrics() -> Option<Vec<GpuFabric>> {
    let text = ask(&format!("index,{FABRIC_FIELDS}")).ok()?;
    let lines = text.lines().map(fields);
    Some(lines.filter_map(|fields| fabric(fields.first()?.parse().ok()?, &fields[1..])).collect())
}

fn ask(fields: &str) -> Result<String, String> {
    output_of(TOOL, &[&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits"])
}

fn fields(line: &str) -> Vec<&str> {
    line.split(',').map(str::trim).collect()
}

/// How one GPU is joined to others; none if it is not.
fn fabric(index: u32, fields: &[&str]) -> Option<GpuFabric> {
    let [state, status] = fields else { return None };
    let status = known(status).unwrap_or_default().to_owned();
    Some(GpuFabric { index, state: known(state)?.to_owned(), status })
}

/// Reads the answer to the query, a line for each GPU. Lines that are something else are skipped.
fn parse_query(text: &str) -> Nvidia {
    let mut found = Nvidia::default();
    for line in text.lines() {
        let fields = fields(line);
        let [index, name, memory, uuid, driver, pci, ref rest @ ..] = fields[..] else {
            continue;
        };
        let Ok(index) = index.parse() else {
            continue;
        };
        found.fabrics.extend(fabric(index, rest));
        found.driver = found.driver.or_else(|| known(driver).map(str::to_owned));
        found.gpus.push(HostGpu {
            vendor: "nvidia".to_owned(),
            name: normalize_name(name),
            memory_mib: memory.parse().unwrap_or(0),
            index,
            uuid: uuid.to_owned(),
            pci: known(pci).map(normalize_pci),
            numa_node: None,
        });
    }
    found
}

/// The CUDA version in the header of the table that `nvidia-smi` prints.
fn parse_cuda(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("CUDA Version:")?;
    let version = rest.split_whitespace().next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

fn known(text: &str) -> Option<&str> {
    let is_known = !text.is_empty() && !text.contains("N/A") && !text.contains("Not Supported");
    is_known.then_some(text)
}

/// `00000000:17:00.0` as sysfs writes it: four digits of domain, lower case.
fn normalize_pci(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    match text.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => {
            format!("{}:{rest}", &domain[domain.len() - 4..])
        }
        _ => text,
    }
}

/// The marketing name without vendor, form factor and memory: `NVIDIA H100 80GB HBM3` is `H100`.
fn normalize_name(name: &str) -> String {
    const BRANDS: [&str; 5] = ["NVIDIA", "Tesla", "GeForce", "Quadro", "Graphics"];
    const NOISE: [&str; 9] =
        ["Generation", "Edition", "Server", "Workstation", "Blackwell", "Max", "Q", "PCIe", "PCIE"];
    let is_noise = |word: &&str| {
        let is_memory = word.strip_suffix("GB").is_some_and(|size| size.parse::<u32>().is_ok());
        let is_form = word.starts_with("SXM") || word.starts_with("HBM");
        is_memory || is_form || NOISE.contains(word)
    };
    let words: Vec<&str> = name
        .split([' ', '-'])
        .filter(|word| !word.is_empty() && !BRANDS.contains(word))
        .filter(|word| !is_noise(word))
        .collect();
    match words[..] {
        // `RTX A6000` is known by its number; `RTX 6000 Ada` is not.
        ["RTX", model, ..] if model.strip_prefix('A').is_some_and(|number| number.parse::<u32>().is_ok()) => {
            model.to_owned()
        }
        [] => name.to_owned(),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: &str = "\
0, NVIDIA H100 80GB HBM3, 81559, GPU-0f6a5c1e-9d4f-3f3b-4a57-0b5b0b6a9f01, 550.90.07, 00000000:18:00.0
1, NVIDIA H100 80GB HBM3, 81559, GPU-1f6a5c1e-9d4f-3f3b-4a57-0b5b0b6a9f02, 550.90.07, 00000000:2A:00.0
";

    const HEADER: &str = "\
Mon Nov 23 10:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.90.07              Driver Version: 550.90.07      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
";

    #[test]
    fn the_query_is_read() {
        let found = parse_query(EIGHT);
        assert_eq!(found.driver.as_deref(), Some("550.90.07"));
        assert_eq!(found.gpus.len(), 2);
        let gpu = &found.gpus[1];
        assert_eq!((gpu.index, gpu.name.as_str(), gpu.memory_mib), (1, "H100", 81_559));
        assert_eq!(gpu.uuid, "GPU-1f6a5c1e-9d4f-3f3b-4a57-0b5b0b6a9f02");
        assert_eq!(gpu.pci.as_deref(), Some("0000:2a:00.0"));
        assert_eq!(parse_query("No devices were found\n"), Nvidia::default());
        let odd = parse_query("0, Tesla T4, [N/A], GPU-1, [N/A], [N/A]\n");
        assert_eq!((odd.driver, odd.gpus[0].memory_mib), (None, 0));
    }

    #[test]
    fn gpus_that_are_joined_say_how_far_that_has_come() {
        let check = |columns: [&str; 2], expected: &[(u32, &str, &str)]| {
            let lines = EIGHT.lines().zip(columns).map(|(line, more)| format!("{line}, {more}\n"));
            let found = parse_query(&lines.collect::<String>());
            assert_eq!(found.gpus.len(), 2);
            let fabrics: Vec<(u32, &str, &str)> =
                found.fabrics.iter().map(|gpu| (gpu.index, &*gpu.state, &*gpu.status)).collect();
            assert_eq!(fabrics, expected);
        };
        check(["Completed, Success"; 2], &[(0, "Completed", "Success"), (1, "Completed", "Success")]);
        check(["Completed, Success", "In Progress, N/A"], &[(0, "Completed", "Success"), (1, "In Progress", "")]);
        check(["N/A, N/A"; 2], &[]);
        check(["[N/A], [N/A]"; 2], &[]);
        assert_eq!(parse_query(EIGHT).fabrics, []);
    }

    #[test]
    fn the_cuda_version_is_read() {
        assert_eq!(parse_cuda(HEADER).as_deref(), Some("12.4"));
        assert_eq!(parse_cuda("| CUDA Version: N/A |"), None);
        assert_eq!(parse_cuda(""), None);
    }

    #[test]
    fn names_are_normalized() {
        let check = |name: &str, expected: &str| assert_eq!(normalize_name(name), expected);
        check("NVIDIA H100 80GB HBM3", "H100");
        check("NVIDIA H100 PCIe", "H100");
        check("NVIDIA H100 NVL", "H100NVL");
        check("NVIDIA H200", "H200");
        check("NVIDIA B200", "B200");
        check("NVIDIA GH200 480GB", "GH200");
        check("NVIDIA A100-SXM4-80GB", "A100");
        check("NVIDIA A100-PCIE-40GB", "A100");
        check("NVIDIA A100 80GB PCIe", "A100");
        check("NVIDIA A10G", "A10G");
        check("NVIDIA L40S", "L40S");
        check("NVIDIA L4", "L4");
        check("Tesla T4", "T4");
        check("Tesla V100-SXM2-16GB", "V100");
        check("Tesla P100-PCIE-16GB", "P100");
        check("NVIDIA RTX A6000", "A6000");
        check("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada");
        check("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000");
        check("NVIDIA GeForce RTX 4090", "RTX4090");
        check("NVIDIA GeForce RTX 3060 Ti", "RTX3060Ti");
        check("Quadro RTX 6000", "RTX6000");
    }
}
