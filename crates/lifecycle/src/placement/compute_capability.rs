//! What CUDA compute capability accelerators have, by the names that backends and agents give them.

use api::configurations::ComputeCapability;

/// The published capability of each model, by its name without the vendor and without spaces.
const MODELS: &[(&[&str], (u32, u32))] = &[
    (&["K80"], (3, 7)),
    (&["M60"], (5, 2)),
    (&["P100"], (6, 0)),
    (&["P4", "P40"], (6, 1)),
    (&["V100"], (7, 0)),
    (&["T4", "T4G", "RTX6000", "RTX8000"], (7, 5)),
    (&["A100", "A30"], (8, 0)),
    (&["A2", "A10", "A10G", "A16", "A40"], (8, 6)),
    (&["A4000", "A4500", "A5000", "A5500", "A6000"], (8, 6)),
    (&["RTX3060", "RTX3060TI", "RTX3070", "RTX3070TI", "RTX3080", "RTX3080TI", "RTX3090", "RTX3090TI"], (8, 6)),
    (&["L4", "L40", "L40S", "RTX4000ADA", "RTX5000ADA", "RTX6000ADA"], (8, 9)),
    (&["RTX4060", "RTX4060TI", "RTX4070", "RTX4070TI", "RTX4080", "RTX4090"], (8, 9)),
    (&["H20", "H100", "H100NVL", "H200", "GH200"], (9, 0)),
    (&["B200", "GB200"], (10, 0)),
    (&["B300", "GB300"], (10, 3)),
    (&["RTX5070", "RTX5070TI", "RTX5080", "RTX5090", "RTXPRO4500", "RTXPRO5000", "RTXPRO6000"], (12, 0)),
];

/// The compute capability of a model, if it is known.
pub(super) fn of(model: &str) -> Option<ComputeCapability> {
    let name: String = model.chars().filter(|letter| !letter.is_whitespace()).collect();
    let is_listed = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(&name));
    let (_, (major, minor)) = MODELS.iter().find(|(names, _)| is_listed(names))?;
    Some(ComputeCapability(*major, *minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_their_names() {
        assert_eq!(of("h100"), Some(ComputeCapability(9, 0)));
        assert_eq!(of("RTX 4090"), Some(ComputeCapability(8, 9)));
        assert_eq!(of("MI300X"), None);
        assert!(of("A10") < of("L4") && of("H200") < of("B200"));
    }

    #[test]
    fn no_model_is_listed_twice() {
        let mut names: Vec<&str> = MODELS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
