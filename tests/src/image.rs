//! The golden image.

use std::path::PathBuf;
use std::process::Command;

use hvkube_sdk::v1::{Template, TemplateSource};

/// A golden image as `cargo xtask image` builds it.
#[derive(Debug, Clone)]
pub struct GoldenImage {
    /// Its folder.
    pub folder: PathBuf,
    json: serde_json::Value,
}

impl GoldenImage {
    /// The one in `HVKUBE_TEST_IMAGE`, or else the one that `cargo xtask image` has in its cache or builds now.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn find() -> Self {
        let folder = match std::env::var_os("HVKUBE_TEST_IMAGE").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => build(),
        };
        let path = folder.join("image.json");
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let json =
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { folder, json }
    }

    fn text(&self, key: &str) -> String {
        self.json[key].as_str().unwrap_or_else(|| panic!("image.json has no {key}")).to_owned()
    }

    fn file(&self, key: &str) -> String {
        self.folder.join(self.text(key)).display().to_string()
    }

    /// A template of it.
    #[must_use]
    pub fn template(&self) -> Template {
        let number = |key: &str| self.json[key].as_u64().unwrap_or_default();
        Template {
            source: Some(TemplateSource {
                disk_path: self.file("disk"),
                disk_format: self.text("disk_format"),
                kernel_path: self.file("kernel"),
                initrd_path: self.file("initrd"),
                kernel_cmdline: self.text("cmdline"),
                ..TemplateSource::default()
            }),
            memory_mb: number("memory_mb"),
            cpu_count: u32::try_from(number("cpu_count")).expect("few"),
            ..Template::default()
        }
    }
}

fn build() -> PathBuf {
    eprintln!("HVKUBE_TEST_IMAGE is not set: cargo xtask image");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["xtask", "image"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo xtask image: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    PathBuf::from(text.trim().lines().last().expect("the image's folder"))
}
