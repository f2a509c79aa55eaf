//! What is changed in an image, as bytes that a fuzzer can change again.
//!
//! The first byte of an input chooses the image. Each 16 after it are one edit: what is done, to how many bytes, in
//! which structure, where in it, with which value. Every input means something, and a small change of it a small one of
//! the image.

use super::image::{Edited, Image, Structure};
use super::support::Chance;

/// Bytes of an edit.
pub const EDIT: usize = 16;
/// Edits of one input; more would only hide each other.
pub const MOST: usize = 24;

/// One change.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    action: u8,
    /// Low two bits: log2 of the bytes of the field; the highest: the checksum is left wrong.
    form: u8,
    structure: u16,
    offset: u32,
    value: [u8; 8],
}

/// The number of the image, and the edits.
pub fn parse(input: &[u8]) -> (usize, Vec<Edit>) {
    let Some((&image, rest)) = input.split_first() else { return (0, Vec::new()) };
    let edit = |raw: &[u8; EDIT]| Edit {
        action: raw[0],
        form: raw[1],
        structure: u16::from_le_bytes([raw[2], raw[3]]),
        offset: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
        value: raw[8..].try_into().expect("eight of sixteen bytes"),
    };
    (usize::from(image), rest.as_chunks().0.iter().take(MOST).map(edit).collect())
}

impl Edit {
    fn number(&self) -> u64 {
        u64::from_le_bytes(self.value)
    }

    /// Changes the image.
    pub fn apply(&self, edited: &mut Edited) {
        let structure = pick(edited.image(), u64::from(self.structure));
        let mut bytes = edited.get(structure);
        let width = 1 << (self.form & 3);
        let at = self.offset as usize % bytes.len();
        let end = bytes.len().min(at + width);
        let field = &mut bytes[at..end];
        match self.action % 16 {
            0..=4 => field.copy_from_slice(&self.value[..end - at]),
            5 => add(field, self.value[0], false),
            6 => add(field, self.value[0], true),
            7 => field.iter_mut().zip(self.value).for_each(|(byte, value)| *byte ^= value),
            8 => field.fill(0),
            9 => field.fill(0xFF),
            // Another structure in the place of this one: what points here is met with something else.
            10 => {
                let other = edited.get(pick(edited.image(), self.number()));
                let len = other.len().min(bytes.len());
                bytes[..len].copy_from_slice(&other[..len]);
            }
            // A field of another one: numbers that mean something elsewhere.
            11 | 12 => {
                let other = edited.get(pick(edited.image(), self.number() & 0xFFFF));
                let from = (self.number() >> 16) as usize % other.len();
                let len = (other.len() - from).min(end - at);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            // Everything behind moves.
            13 => bytes[at..].rotate_right(width.min(end - at)),
            14 => bytes[at..].rotate_left(width.min(end - at)),
            _ => {
                if self.value[0] == 0 {
                    edited.truncate(self.number() >> 8);
                }
                return;
            }
        }
        edited.put(structure, &bytes);
        if self.form & 0x80 == 0 {
            edited.image().sums.clone().settle(edited, structure);
        }
    }
}

fn pick(image: &Image, number: u64) -> Structure {
    image.structures[(number % image.structures.len() as u64) as usize]
}

/// Adds to a number, of whichever order of bytes.
fn add(field: &mut [u8], what: u8, big_endian: bool) {
    let what = i16::from(what as i8);
    let mut carry = what;
    let mut step = |byte: &mut u8| {
        let sum = i16::from(*byte) + carry;
        *byte = sum.rem_euclid(256) as u8;
        carry = sum.div_euclid(256);
    };
    if big_endian { field.iter_mut().rev().for_each(&mut step) } else { field.iter_mut().for_each(&mut step) }
}

fn below(chance: &mut Chance, n: usize) -> usize {
    chance.below(n as u64) as usize
}

/// An edit made by chance: where something is, most often, and often a number that is at the end of something.
pub fn random(image: &Image, chance: &mut Chance) -> [u8; EDIT] {
    const ENDS: [u64; 12] =
        [0, 1, 2, 8, 0x7F, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, u64::MAX >> 1, u64::MAX];
    let number = below(chance, image.structures.len());
    let structure = image.structures[number];
    let bytes = image.get(structure.at, structure.len);
    let mut at = below(chance, structure.len);
    for _ in 0..below(chance, 12) {
        if bytes[at] != 0 {
            break;
        }
        at = below(chance, structure.len);
    }
    let form = below(chance, 4) as u8 | if below(chance, 12) == 0 { 0x80 } else { 0 };
    // Numbers stand at multiples of their width.
    if below(chance, 4) > 0 {
        at -= at % (1 << (form & 3));
    }
    let value = match below(chance, 4) {
        0 => ENDS[below(chance, ENDS.len())],
        1 => ENDS[below(chance, ENDS.len())].swap_bytes(),
        2 => chance.next() >> below(chance, 64),
        _ => u64::from_le_bytes(std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or(0)))
            .wrapping_add(below(chance, 5) as u64)
            .wrapping_sub(2),
    };
    let mut raw = [0; EDIT];
    raw[0] = below(chance, 16) as u8;
    raw[1] = form;
    raw[2..4].copy_from_slice(&(number as u16).to_le_bytes());
    raw[4..8].copy_from_slice(&(at as u32).to_le_bytes());
    raw[8..].copy_from_slice(&value.to_le_bytes());
    raw
}

/// Changes an input as a whole: an edit more, fewer, another one, repeated beside itself; `plain` changes some bytes.
pub fn mutate(
    images: &[std::sync::Arc<Image>],
    input: &mut Vec<u8>,
    chance: &mut Chance,
    plain: impl FnOnce(&mut [u8]),
) {
    if input.is_empty() || below(chance, 60) == 0 {
        input.resize(input.len().max(1), 0);
        input[0] = below(chance, images.len()) as u8;
    }
    let image = &images[usize::from(input[0]) % images.len()];
    input.truncate(1 + (input.len() - 1) / EDIT * EDIT);
    let count = (input.len() - 1) / EDIT;
    let at = 1 + below(chance, count.max(1)) * EDIT;
    match below(chance, 16) {
        _ if count == 0 => input.extend(random(image, chance)),
        0..=4 if count < MOST => input.extend(random(image, chance)),
        5 => drop(input.drain(at..at + EDIT)),
        6 if count < MOST => {
            // The next field, or the same one of the next structure.
            let mut edit: [u8; EDIT] = input[at..at + EDIT].try_into().expect("an edit");
            let (field, by) = if below(chance, 2) == 0 { (4, 1 << (edit[1] & 3)) } else { (2, 1) };
            edit[field] = edit[field].wrapping_add(by);
            input.extend(edit);
        }
        7 => input[at..at + EDIT].copy_from_slice(&random(image, chance)),
        8 => input[at] = below(chance, 16) as u8,
        9 => add(&mut input[at + 4..at + 6], (below(chance, 33) as u8).wrapping_sub(16), false),
        // What a comparison wanted goes to where the value is.
        _ => plain(&mut input[at + 8..at + EDIT]),
    }
}
