//! What nvidia-smi prints, on the host and in a container.

use phoenix_nvidia::guest::smi::{gpus, is_mismatch, version};
use phoenix_nvidia::host::nvidia_smi::{card_uuids, mig_places, mig_uuids};

/// What is listed is in the text, once for each line that says so.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    let list = gpus(&text);
    assert!(list.len() <= lines.min(256));
    for gpu in &list {
        assert!(gpu.uuid.starts_with("GPU-") && text.contains(&gpu.uuid) && text.contains(&gpu.pci));
        assert!(!gpu.uuid.contains(['\n', ',']) && !gpu.pci.contains(['\n', ',']));
    }
    let versions = version(&text);
    for found in [&versions.tool, &versions.kernel].into_iter().flatten() {
        assert!(text.contains(found.as_str()), "{found}");
    }
    let cards = card_uuids(&text);
    assert!(cards.len() <= lines);
    for (pci, uuid) in &cards {
        assert!(uuid.starts_with("GPU-") && !uuid.contains('\n'), "{uuid:?}");
        assert_eq!(card_uuids(&format!("{pci}, {uuid}\n")), [(*pci, uuid.clone())]);
    }
    let instances = mig_uuids(&text);
    assert!(instances.len() <= lines);
    for (card, index, uuid) in &instances {
        let written = format!("GPU 0: x (UUID: {card})\n  MIG 1g.5gb     Device  {index}: (UUID: {uuid})\n");
        assert_eq!(mig_uuids(&written), [(card.clone(), *index, uuid.clone())]);
    }
    let places = mig_places(&text);
    assert!(places.len() <= text.matches("<mig_device>").count());
    places.iter().for_each(|place| assert!(text.contains(&place.card)));
    if is_mismatch(&text) {
        assert!(text.contains("mismatch"));
    }
}
