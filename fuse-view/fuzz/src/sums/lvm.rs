//! LVM2, as the tests write it: the label, the header of the only area, the text that this names.

use super::super::image::{Edited, Structure};
use super::super::lvm::{AREA, sum};

const LABEL: Structure = Structure { at: 512, len: 512 };
const HEADER: Structure = Structure { at: AREA.0 as u64, len: 512 };

pub fn settle(edited: &mut Edited) {
    let mut label = edited.get(LABEL);
    let crc = sum(&label[20..]);
    label[16..20].copy_from_slice(&crc.to_le_bytes());
    edited.put(LABEL, &label);
    let mut header = edited.get(HEADER);
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (at, len, ring) = (number(40), number(48), AREA.1 as u64);
    if (512..ring).contains(&at) && len < ring {
        let first = len.min(ring - at) as usize;
        let mut text = edited.get(Structure { at: HEADER.at + at, len: first });
        text.extend(edited.get(Structure { at: HEADER.at + 512, len: len as usize - first }));
        header[56..60].copy_from_slice(&sum(&text).to_le_bytes());
    }
    let crc = sum(&header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    edited.put(HEADER, &header);
}
