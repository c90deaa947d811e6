//! Images of every version of the format are opened, or refused, as when they were written.

use qrvsa_sim::golden;

#[test]
fn golden_images_are_opened_and_refused_as_they_were() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "pool") {
            continue;
        }
        let disks = golden::decode(&std::fs::read(&path).unwrap()).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("txt")).unwrap();
        assert_eq!(golden::describe(&disks), expected, "{}", path.display());
        count += 1;
    }
    assert!(count >= 10, "only {count} golden images in {}", dir.display());
}

#[test]
fn what_is_written_down_reads_back() {
    for (name, disks) in golden::images().unwrap() {
        let again = golden::decode(&golden::encode(&disks)).unwrap();
        for ((size, image), (size_again, image_again)) in disks.iter().zip(&again) {
            let written = |image: &qrvsa_sim::image::Image| {
                let mut blocks = image.blocks();
                blocks.retain(|_, b| b.iter().any(|byte| *byte != 0));
                blocks
            };
            assert!(size == size_again && written(image) == written(image_again), "{name}");
        }
    }
}
