//! Certificate authorities from a file.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Every certificate of a PEM file; none for an empty path.
///
/// # Errors
/// Says what is wrong with the file, to be put behind the setting's name.
pub fn read(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("cannot be read from {path:?}: {error}"))?;
    if certificates.is_empty() {
        return Err(format!("names {path:?}, which holds no certificate"));
    }
    Ok(certificates)
}
