//! OpenPGP's ASCII armour (RFC 9580, section 6): apt reads an armoured key
//! without gnupg.

use anyhow::bail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// A public key, armoured or binary, as armoured text.
///
/// # Errors
/// It is neither.
pub fn public_key(bytes: &[u8]) -> anyhow::Result<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let (Some(start), Some(end)) = (text.find(BEGIN), text.find(END)) {
            if start < end {
                return Ok(format!("{}\n", text[start..end + END.len()].replace('\r', "")));
            }
        }
        if text.trim_start().starts_with('<') {
            bail!("it is a web page, not a key");
        }
    }
    // The tag of a public key packet, in the old and the new format.
    match bytes.first() {
        Some(0x98..=0x9b | 0xc6) if bytes.len() > 20 => Ok(armour(bytes)),
        _ => bail!("it is not an OpenPGP public key"),
    }
}

/// The lines of base64 in an armoured key.
pub fn base64(armoured: &str) -> String {
    let lines = armoured.lines().skip_while(|line| !line.trim().is_empty()).skip(1);
    let body = lines.take_while(|line| !line.starts_with(['=', '-']));
    body.filter(|line| !line.trim().is_empty()).map(|line| format!("{}\n", line.trim())).collect()
}

/// Without the checksum, which is optional.
fn armour(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes.chunks(48).map(|line| STANDARD.encode(line)).collect();
    format!("{BEGIN}\n\n{}\n{END}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_out_armoured_and_a_web_page_not_at_all() {
        let armoured = format!("junk\r\n{BEGIN}\r\n\r\nAAAA\r\n{END}\r\n");
        assert_eq!(public_key(armoured.as_bytes()).unwrap(), format!("{BEGIN}\n\nAAAA\n{END}\n"));
        let binary = [&[0x99, 1, 2][..], &[0; 60]].concat();
        let lines = format!("mQEC{}\n{}\n", "A".repeat(60), "A".repeat(20));
        assert_eq!(public_key(&binary).unwrap(), format!("{BEGIN}\n\n{lines}{END}\n"));
        assert_eq!(base64(&public_key(&binary).unwrap()), lines);
        assert_eq!(base64(&format!("{BEGIN}\nVersion: x\n\nAAAA\nBBB=\n=xyz1\n{END}\n")), "AAAA\nBBB=\n");
        for bad in [&b"<html>"[..], b"", b"hello", b"\x99"] {
            assert!(public_key(bad).is_err());
        }
    }
}
