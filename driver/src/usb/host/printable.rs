//! Makes names that devices and programs choose safe to display.

/// The name without characters that control how text is displayed, of at most `longest` characters.
pub(crate) fn printable(name: &[u8], longest: usize) -> String {
    let name = String::from_utf8_lossy(name);
    let shown = name.trim().chars().filter(|one| !is_control(*one));
    shown.take(longest).collect()
}

/// Returns whether the character is a control character, invisible, or changes the writing direction.
fn is_control(one: char) -> bool {
    let is_format = matches!(
        one,
        '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}'
    );
    is_format || one.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_removed_from_displayed_names() {
        let hostile = "\u{FEFF}Key\u{202E}yeK\u{202C} \u{2066}1\u{2069}\u{200B}\u{200F}\u{2060}\x1B[2J\u{9B}\n";
        assert_eq!(printable(hostile.as_bytes(), 64), "KeyyeK 1[2J");
        let plain = "Schlüssel für Ä–Ö 鍵";
        assert_eq!(printable(plain.as_bytes(), 64), plain);
        assert_eq!(printable(b"\xFFKey", 64), "\u{FFFD}Key");
        assert_eq!(printable("鍵鍵鍵".as_bytes(), 2), "鍵鍵");
    }
}
