//! A certificate with its key, from two files.

use std::{fs::File, io::Read as _};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// No certificate with all that stands between it and its authority is as large.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the two files hold. Not shown, because one is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(certificate: &str, key: &str) -> Result<Pair, String> {
        Ok(Pair { certificate: bytes(certificate)?, key: bytes(key)? })
    }

    /// The chain, the server's own certificate first.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            Ok(_) => Err("the file of certificates holds none".to_owned()),
            Err(error) => Err(format!("the file of certificates is no PEM: {error}")),
        }
    }

    /// # Errors
    /// Says that there is none, and shows nothing of it.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| "the file of the key holds no private key in PEM".to_owned())
    }
}

fn bytes(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    Ok(bytes)
}
