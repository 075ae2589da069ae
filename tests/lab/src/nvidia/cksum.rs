//! The checksum of POSIX `cksum`, which a runfile's second line holds.

const POLYNOMIAL: u32 = 0x04c1_1db7;

/// Eight tables: a test build without optimisation would take seconds for a padded runfile byte by byte.
const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ POLYNOMIAL };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        byte = 0;
        while byte < 256 {
            let before: u32 = tables[table - 1][byte];
            tables[table][byte] = (before << 8) ^ tables[0][(before >> 24) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The checksum of some bytes: the CRC over them and over their number, complemented.
pub(crate) fn cksum(bytes: &[u8]) -> u32 {
    let mut crc = 0;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let head = u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]) ^ crc;
        let [a, b, c, d] = head.to_be_bytes();
        crc = TABLES[7][a as usize]
            ^ TABLES[6][b as usize]
            ^ TABLES[5][c as usize]
            ^ TABLES[4][d as usize]
            ^ TABLES[3][chunk[4] as usize]
            ^ TABLES[2][chunk[5] as usize]
            ^ TABLES[1][chunk[6] as usize]
            ^ TABLES[0][chunk[7] as usize];
    }
    let mut step = |byte: u8| crc = (crc << 8) ^ TABLES[0][((crc >> 24) as u8 ^ byte) as usize];
    chunks.remainder().iter().for_each(|&byte| step(byte));
    let mut length = bytes.len();
    while length > 0 {
        step((length & 0xff) as u8);
        length >>= 8;
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::cksum;
    use std::process::Command;

    #[test]
    fn it_is_what_the_program_says() -> std::io::Result<()> {
        assert_eq!(cksum(b""), 4_294_967_295);
        let bytes: Vec<u8> = (0..100_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let file = tempfile::NamedTempFile::new()?;
        for length in [1, 7, 8, 9, 255, 256, 65_537, bytes.len()] {
            std::fs::write(file.path(), &bytes[..length])?;
            let output = Command::new("cksum").arg(file.path()).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text.split(' ').next(), Some(cksum(&bytes[..length]).to_string().as_str()));
        }
        Ok(())
    }
}
