//! What the kernel tells of a running program. Tests of other crates include this file by its path.

/// Whether the code of the program that the process `pid` runs is locked in memory: the flag `lo` of proc_pid_smaps(5).
///
/// # Panics
/// If the process is gone.
pub fn is_code_locked(pid: u32) -> bool {
    let read = |name: &str| format!("/proc/{pid}/{name}");
    let program = std::fs::read_link(read("exe")).expect("it runs");
    let maps = std::fs::read_to_string(read("smaps")).expect("it runs");
    let (mut is_code, mut locked) = (false, Vec::new());
    for line in maps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if is_code {
                locked.push(flags.split_whitespace().any(|flag| flag == "lo"));
            }
        } else if let [_, rights, _, _, _, file] = line.split_whitespace().collect::<Vec<_>>()[..] {
            is_code = rights.contains('x') && program.to_str() == Some(file);
        }
    }
    !locked.is_empty() && !locked.contains(&false)
}
