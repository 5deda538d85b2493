//! Certificates from authorities that nobody else trusts, as files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;

const DAY: Duration = Duration::from_secs(86_400);

/// An authority, and a folder for what it makes that goes with it.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("eventpulse-certificates-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        fs::write(dir.join("ca.pem"), issuer.pem()).expect("a file");
        Authority { issuer, dir }
    }

    /// The file with the authority's own certificate.
    pub(crate) fn file(&self) -> String {
        self.path("ca.pem")
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path: &Path = &self.dir.join(name);
        path.to_str().expect("text").to_owned()
    }

    /// A certificate for a host, good for some days from now, and its key, both in PEM.
    pub(crate) fn issue(&self, host: &str, days: u32) -> (String, String) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + DAY * days).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// The same in two files, whose names it gives.
    pub(crate) fn place(&self, host: &str, days: u32) -> (String, String) {
        let (certificate, key) = self.issue(host, days);
        let (one, two) = (self.path("server.pem"), self.path("server.key"));
        fs::write(&one, certificate).expect("a file");
        fs::write(&two, key).expect("a file");
        (one, two)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
