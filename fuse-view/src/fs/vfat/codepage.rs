//! Code page 437, in which short names are written.

/// The characters of the bytes from 0x80 on.
const UPPER: &str = "\
ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The character of a byte.
pub fn char_of(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(index) => UPPER.chars().nth(usize::from(index)).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: std::collections::BTreeSet<char> = (0..=255).map(char_of).collect();
        assert_eq!(all.len(), 256);
        assert!(!all.contains(&char::REPLACEMENT_CHARACTER));
        assert_eq!([0x41, 0x80, 0x9B, 0xE1, 0xFF].map(char_of), ['A', 'Ç', '¢', 'ß', '\u{a0}']);
    }
}
