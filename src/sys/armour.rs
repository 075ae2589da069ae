//! OpenPGP's armour (RFC 4880, section 6): apt takes an armoured key without
//! gnupg.

use anyhow::bail;
use std::fmt::Write as _;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A public key as text, whether it came armoured or binary.
///
/// # Errors
/// When it is neither.
pub fn public_key(bytes: &[u8]) -> anyhow::Result<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        // Text around the block would be no harm, but is not needed either.
        if let (Some(start), Some(end)) = (text.find(BEGIN), text.find(END)) {
            if start < end {
                return Ok(format!("{}\n", text[start..end + END.len()].replace('\r', "")));
            }
        }
        if text.trim_start().starts_with('<') {
            bail!("it is a web page, not a key");
        }
    }
    // The tag of a public key packet, in the old and the new form.
    match bytes.first() {
        Some(0x98..=0x9b | 0xc6) if bytes.len() > 20 => Ok(armour(bytes)),
        _ => bail!("it is no OpenPGP public key"),
    }
}

fn armour(bytes: &[u8]) -> String {
    let mut text = format!("{BEGIN}\n\n");
    for line in bytes.chunks(48) {
        text.push_str(&base64(line));
        text.push('\n');
    }
    let crc = crc24(bytes).to_be_bytes();
    let _ = writeln!(text, "={}\n{END}", base64(&crc[1..]));
    text
}

pub(super) fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let value = group.iter().fold(0u32, |v, b| (v << 8) | u32::from(*b)) << (8 * (3 - group.len()));
        for n in 0..4 {
            let digit = ALPHABET[(value >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= group.len() { digit as char } else { '=' });
        }
    }
    text
}

fn crc24(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x00B7_04CE, |crc, byte| {
        (0..8).fold(crc ^ (u32::from(*byte) << 16), |crc, _| {
            let next = crc << 1;
            if next & 0x0100_0000 == 0 { next } else { next ^ 0x0186_4CFB }
        })
    }) & 0x00FF_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_and_crc24_are_the_standards() {
        let known = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in known {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(crc24(b""), 0x00B7_04CE);
        assert_eq!(crc24(b"123456789"), 0x0021_CF02);
    }

    #[test]
    fn a_key_comes_out_armoured_and_a_web_page_not_at_all() {
        let armoured = format!("junk\r\n{BEGIN}\r\n\r\nAAAA\r\n{END}\r\n");
        assert_eq!(public_key(armoured.as_bytes()).unwrap(), format!("{BEGIN}\n\nAAAA\n{END}\n"));
        let binary = [&[0x99, 1, 2][..], &[7; 60]].concat();
        let text = public_key(&binary).unwrap();
        assert!(text.starts_with(BEGIN) && text.trim_end().ends_with(END));
        for bad in [&b"<html>"[..], b"", b"hello", b"\x99"] {
            assert!(public_key(bad).is_err());
        }
    }
}
