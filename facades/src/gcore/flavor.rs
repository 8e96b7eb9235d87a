//! Flavors: a share of a processor and an amount of memory in one word.

use coracle_model::{Invalid, Memory, MilliCpu};

use super::wire;

/// Gcore's own upper bound for both halves; below it ours, the model's floors, apply.
const HALF_MAX: u32 = 2_000;

/// What the flavors route offers: (thousandths of a core, MiB). Any other pair within the bounds is
/// accepted too, since a flavor costs nothing to have and clients bring lists of their own.
const OFFERED: [(u32, u32); 12] = [
    (64, 64),
    (80, 128),
    (100, 128),
    (125, 256),
    (150, 256),
    (200, 256),
    (250, 512),
    (300, 512),
    (500, 512),
    (500, 1024),
    (1000, 1024),
    (2000, 2000),
];

/// Both spellings: `64m-64MB`, and the older `64mCPU-64MB`.
pub(crate) fn parse(text: &str) -> Result<(MilliCpu, Memory), Invalid> {
    let unknown = || {
        let names: Vec<_> = OFFERED.iter().map(|(cpu, ram)| name(*cpu, *ram)).collect();
        let shown: String = text.chars().take(60).collect();
        Invalid::new(
            "flavor",
            format_args!(
                "{shown:?} is not a flavor; write <thousandths of a core>m-<memory>MB within \
                 10m-16MB and {HALF_MAX}m-{HALF_MAX}MB, for example one of {}",
                names.join(", ")
            ),
        )
    };
    let (cpu, ram) = text.split_once('-').ok_or_else(unknown)?;
    let cpu = cpu
        .strip_suffix("CPU")
        .unwrap_or(cpu)
        .strip_suffix('m')
        .ok_or_else(unknown)?;
    let ram = ram.strip_suffix("MB").ok_or_else(unknown)?;
    let number = |digits: &str| {
        // `parse` would also take a sign.
        let digits_only = digits.bytes().all(|b| b.is_ascii_digit());
        digits
            .parse::<u32>()
            .ok()
            .filter(|n| digits_only && *n <= HALF_MAX)
    };
    let cpu = number(cpu)
        .and_then(|n| MilliCpu::new(n).ok())
        .ok_or_else(unknown)?;
    let ram = number(ram)
        .and_then(|n| Memory::from_mib(n).ok())
        .ok_or_else(unknown)?;
    Ok((cpu, ram))
}

pub(crate) fn name(cpu: u32, ram: u32) -> String {
    format!("{cpu}m-{ram}MB")
}

/// Those offered, or the one named if there is such a flavor.
pub(crate) fn list(filter: Option<&str>) -> Vec<wire::Flavor> {
    let flavor = |cpu, ram| wire::Flavor {
        name: name(cpu, ram),
        cpu,
        ram,
    };
    match filter {
        None => OFFERED
            .iter()
            .map(|(cpu, ram)| flavor(*cpu, *ram))
            .collect(),
        Some(text) => {
            let found = parse(text).into_iter();
            found
                .map(|(cpu, ram)| flavor(cpu.get(), ram.mib()))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_the_bounds() {
        for (text, expected) in [
            ("64m-64MB", Some((64, 64))),
            ("64mCPU-64MB", Some((64, 64))),
            ("10m-16MB", Some((10, 16))),
            ("2000m-2000MB", Some((2000, 2000))),
            ("9m-16MB", None),
            ("10m-15MB", None),
            ("2001m-64MB", None),
            ("64m-2001MB", None),
            ("+64m-64MB", None),
            ("64-64MB", None),
            ("64m-64", None),
            ("64m64MB", None),
            ("m-MB", None),
            ("large", None),
            ("", None),
        ] {
            let got = parse(text).map(|(cpu, ram)| (cpu.get(), ram.mib()));
            assert_eq!(got.as_ref().ok(), expected.as_ref(), "{text}");
            assert!(
                got.err().is_none_or(|invalid| invalid.field == "flavor"),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_offered_is_accepted() {
        for flavor in list(None) {
            assert_eq!(list(Some(&flavor.name)), [flavor]);
        }
        assert_eq!(list(Some("none")), []);
    }
}
