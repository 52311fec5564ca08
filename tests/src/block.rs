//! Block device files: a disk larger than memory written through a mapping and by calls, a disk that
//! fails, and one that is read-only. `tests/guest/block-device.c` says what held; what the disk has
//! after power-off is looked at here.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use vmm::{ImageAs, Machine, MachineType};

use crate::{
    guest::{self, IMAGES, Run},
    pressure,
    suite::{Slice, Suite, Verdict},
};

const LIMIT_S: u64 = 120;
const MEMORY_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = 96 << 20;
const PAGE: usize = 4096;

pub fn add(suite: &mut Suite) {
    for (slice, machine_type, cpus) in [
        (Slice::Quick, MachineType::Q35, 2),
        (Slice::Default, MachineType::Q35, 1),
        (Slice::Default, MachineType::MicrovmPcie, 2),
    ] {
        let name = format!("block/{machine_type:?}/{cpus}-cpu/larger-than-memory").to_lowercase();
        suite.add(slice, name, move || verdict(larger_than_memory(machine_type, cpus)));
    }
    suite.add(Slice::Default, "block/failing", || verdict(failing()));
    suite.add(Slice::Default, "block/read-only", || verdict(read_only()));
}

fn verdict(result: Result<Verdict, String>) -> Verdict {
    result.unwrap_or_else(Verdict::Failed)
}

fn larger_than_memory(machine_type: MachineType, cpus: u32) -> Result<Verdict, String> {
    let disk = empty_disk("block-device.disk")?;
    // On PCI: QEMU's microvm hands out its MMIO places from the last on, and the first disk is the root.
    let device = "virtio-blk-pci,disable-legacy=on,drive=data";
    let drive = format!("if=none,id=data,format=raw,cache=unsafe,file={}", disk.display());
    let run = run(machine_type, cpus, &["map"], &["-drive", &drive, "-device", device])?;
    Ok(all_held(&run).unwrap_or_else(|| match wrong_page(&disk) {
        Ok(None) => Verdict::Passed,
        Ok(Some(page)) => run.fail(format!("page {page} of the disk is wrong after power-off")),
        Err(why) => Verdict::Failed(why),
    }))
}

/// QEMU answers every write with an error.
fn failing() -> Result<Verdict, String> {
    let disk = empty_disk("failing.disk")?;
    let drive = format!(
        "driver=blkdebug,node-name=data,image.driver=raw,image.file.driver=file,image.file.filename={},\
         inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=5",
        disk.display()
    );
    let device = "virtio-blk-pci,disable-legacy=on,drive=data,werror=report";
    let run = run(MachineType::Q35, 2, &["fail"], &["-blockdev", &drive, "-device", device])?;
    let text = String::from_utf8_lossy(&run.output);
    let is_loud = text.contains("vdb: write failed") && text.contains("has not kept all");
    Ok(all_held(&run).unwrap_or_else(|| if is_loud { Verdict::Passed } else { run.fail("the console says nothing") }))
}

/// The root disk.
fn read_only() -> Result<Verdict, String> {
    let run = run(MachineType::Q35, 1, &["read-only", "/dev/vda"], &[])?;
    Ok(all_held(&run).unwrap_or(Verdict::Passed))
}

fn run(machine_type: MachineType, cpus: u32, arguments: &[&str], extra: &[&str]) -> Result<Run, String> {
    let program = guest::compiled("block-device")?;
    let mut machine = guest::machine("/program", LIMIT_S);
    machine.boot.args = arguments.iter().map(ToString::to_string).collect();
    let image = guest::image(pressure::image_of(&program)?, ImageAs::Disk);
    let extra_arguments = extra.iter().map(ToString::to_string).collect();
    guest::run(&Machine { machine_type, cpus, memory_bytes: MEMORY_BYTES, image, extra_arguments, ..machine })
}

/// None: the program found nothing wrong.
fn all_held(run: &Run) -> Option<Verdict> {
    let passed = run.exit_code() == Some(0) && !String::from_utf8_lossy(&run.output).contains(": NO");
    (!passed).then(|| run.fail(format!("ended as {:?}", run.report.outcome)))
}

fn empty_disk(name: &str) -> Result<PathBuf, String> {
    guest::image_folder()?;
    let path = Path::new(IMAGES).join(name);
    let made = File::create(&path).and_then(|file| file.set_len(DISK_BYTES));
    made.map(|()| path).map_err(|error| format!("{name}: {error}"))
}

/// What the program wrote last: `word` of it, round 3 in the first half and 1 in the second, and four
/// bytes in the last page.
fn wrong_page(disk: &Path) -> Result<Option<usize>, String> {
    let mut bytes = fs::read(disk).map_err(|error| format!("{}: {error}", disk.display()))?;
    let pages = bytes.len() / PAGE;
    let last = &mut bytes[(pages - 1) * PAGE..];
    if last[10..14] != *b"part" {
        return Ok(Some(pages - 1));
    }
    last[8..16].copy_from_slice(&word(pages - 1, 1, 1).to_le_bytes());
    Ok((0..pages).find(|&page| {
        let round = if page < pages / 2 { 3 } else { 1 };
        let words = bytes[page * PAGE..][..PAGE].chunks_exact(8).enumerate();
        words.into_iter().any(|(at, found)| found != word(page, at, round).to_le_bytes())
    }))
}

fn word(page: usize, at: usize, round: u64) -> u64 {
    ((page * PAGE / 8 + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(round)
}
