//! placeholder
use std::path::PathBuf;
/// s
#[derive(Clone, Debug)]
pub struct HubSettings;
impl HubSettings {
    /// s
    pub fn from_env(_: impl Fn(&str) -> Option<String>) -> Self {
        Self
    }
}
/// s
pub fn fetch_model(_model: &str, _weights: bool, _s: &HubSettings, _p: bool) -> Result<PathBuf, String> {
    Err("no".into())
}
