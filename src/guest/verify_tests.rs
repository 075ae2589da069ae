use super::*;

fn desired(gpus: Option<usize>) -> Desired {
    Desired { gpus, ..Desired::sample() }
}

fn answer(shown: &str, code: i32, list: &str) -> SmiAnswer {
    SmiAnswer::parse(&format!("shown 1\n{shown}\nrc {code}\n{list}\n\nlist-rc 0\n"))
}

const TWO: &str = "0, GPU-aa, 00000000:01:00.0, 580.95.05\n1, GPU-bb, 00000000:41:00.0, 580.95.05";

fn bad(answer: &SmiAnswer, gpus: Option<usize>) -> String {
    match judge(answer, &desired(gpus)) {
        Verdict::Bad(why) => why,
        _ => panic!("{answer:?}"),
    }
}

#[test]
fn the_number_of_gpus_must_be_the_assigned_one() {
    let two = answer("+---+", 0, TWO);
    assert!(matches!(judge(&two, &desired(Some(2))), Verdict::Good { gpus, .. } if gpus.len() == 2));
    assert!(matches!(judge(&two, &desired(None)), Verdict::Good { .. }));
    assert_eq!(bad(&two, Some(1)), "lists 2 GPUs, 1 assigned");
    assert_eq!(bad(&two, Some(0)), "lists 2 GPUs, 0 assigned");
    let old = answer("+---+", 0, &TWO.replace("580.95.05", "580.76.05"));
    assert!(bad(&old, Some(2)).contains("580.76.05"));
}

#[test]
fn no_gpu_is_a_failure_only_where_one_is_assigned() {
    let none = answer("No devices were found", 6, "No devices were found");
    assert!(
        matches!(judge(&none, &desired(Some(0))), Verdict::NoGpuAssigned(line) if line == "No devices were found")
    );
    assert!(bad(&none, Some(1)).contains("no devices found"));
    let mismatch = answer("Failed to initialize NVML: Driver/library version mismatch", 18, "");
    assert!(
        bad(&mismatch, Some(0)).contains("different versions"),
        "a wrong driver is wrong without a GPU too"
    );
}

#[test]
fn the_words_of_three_shells_name_the_errno() {
    assert_eq!(Opened::read("No such device or address"), Opened::Allowed);
    assert_eq!(Opened::read("No such device or address\n"), Opened::Allowed);
    assert_eq!(Opened::read("Operation not permitted"), Opened::NoRule);
    assert_eq!(Opened::read("Permission denied"), Opened::Mode);
    assert_eq!(Opened::read("No such file"), Opened::Absent);
    assert_eq!(Opened::read("Is a horse"), Opened::Other("Is a horse".into()));
}

#[test]
fn the_reason_is_the_nodes() {
    let guest = Guest::new("101".parse().unwrap());
    let mismatch = answer("Driver/library version mismatch", 18, "");
    let error = explain(&guest, &desired(Some(1)), &mismatch, "exit code 18".into(), &[], None);
    assert!(error.to_string().contains("the container has 580.95.05"), "{error}");
    let nodes = [(DevicePath::Control, Opened::Allowed), (DevicePath::Gpu(0), Opened::NoRule)];
    let error =
        explain(&guest, &desired(Some(1)), &answer("", 255, ""), "exit code 255".into(), &nodes, None);
    assert!(error.to_string().contains("/dev/nvidia0 denied by the container's device rules (EPERM)"));
    assert_eq!(crate::exit::remedy_of(&error), Some("pct reboot 101"));
    let error =
        explain(&guest, &desired(Some(1)), &answer("", 9, ""), "exit code 9".into(), &nodes[..1], None);
    assert!(error.to_string().contains("the kernel driver does not answer"), "{error}");
}

#[test]
fn a_card_that_the_driver_does_not_drive_is_the_reason_where_the_nodes_are_right() {
    let guest = Guest::new("101".parse().unwrap());
    let host = || Some(("GPU 0 (x): the open module does not".to_owned(), "install the other".to_owned()));
    let none = answer("No devices were found", 6, "");
    let explain = |nodes: &[(DevicePath, Opened)]| {
        explain(&guest, &desired(Some(1)), &none, "exit code 6, no devices found".into(), nodes, host())
    };
    let error = explain(&[(DevicePath::Gpu(0), Opened::Allowed)]);
    assert!(error.to_string().ends_with("no devices found; GPU 0 (x): the open module does not"), "{error}");
    assert_eq!(crate::exit::remedy_of(&error), Some("install the other"));
    let error = explain(&[(DevicePath::Gpu(0), Opened::NoRule)]);
    assert_eq!(crate::exit::remedy_of(&error), Some("pct reboot 101"));
}
