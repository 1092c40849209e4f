//! What a registry has: its repositories and their tags.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;

use super::endpoint::{Endpoint, scope};
use super::http::Request;
use super::{Registry, parse, url};
use crate::descriptor::null_as_default;
use crate::error::{Error, Result};
use crate::limits::check_bytes;
use crate::reference::Reference;

/// Pages of a list; a registry that has more goes round in circles.
const MAX_PAGES: usize = 10_000;
/// All pages of a list together may be as large as so many documents.
const DOCUMENTS: u64 = 16;

impl Registry {
    /// The tags of the repository of `name`, in the registry's order.
    ///
    /// # Errors
    ///
    /// See [`Registry`].
    pub fn tags(&self, name: &Reference) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default, deserialize_with = "null_as_default")]
            tags: Vec<String>,
        }
        let endpoint = self.endpoint(name.registry())?;
        let first = endpoint.url(name.repository(), "tags/list");
        let scopes = [scope(name.repository(), "pull")];
        let request = |address| Request::new("list the tags of", Method::GET, address);
        let found = self.pages(&endpoint, first, &scopes, &[], request, |page: Page| {
            page.tags
        })?;
        Ok(found.unwrap_or_default())
    }

    /// The repositories of `registry` (`HOST[:PORT]`). Many registries do not tell.
    ///
    /// # Errors
    ///
    /// See [`Registry`].
    pub fn catalog(&self, registry: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default, deserialize_with = "null_as_default")]
            repositories: Vec<String>,
        }
        let endpoint = self.endpoint(registry)?;
        let first = endpoint.root_url("_catalog");
        let scopes = ["registry:catalog:*".to_owned()];
        let request = |address| Request::new("list the repositories of", Method::GET, address);
        let items = |page: Page| page.repositories;
        let found = self.pages(&endpoint, first, &scopes, &[], request, items)?;
        Ok(found.unwrap_or_default())
    }

    /// What is on all pages of a list, the first of which is at `first`; nothing where the registry answers with a
    /// status of `absent`.
    pub(super) fn pages<P: DeserializeOwned, T>(
        &self,
        endpoint: &Endpoint,
        first: String,
        scopes: &[String],
        absent: &[u16],
        request: impl Fn(String) -> Request<'static>,
        items: impl Fn(P) -> Vec<T>,
    ) -> Result<Option<Vec<T>>> {
        let limits = &self.http.options.limits;
        let most = limits.document_bytes.saturating_mul(DOCUMENTS);
        let (mut all, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(address) = next else {
                return Ok(Some(all));
            };
            let request = request(address);
            let page = endpoint.request(&request, scopes, |mut answer| {
                match answer.status {
                    200 => {}
                    status if absent.contains(&status) => return Ok(None),
                    _ => return Err(answer.refused(request.operation).into()),
                }
                let document = answer.read(request.operation, limits.document_bytes)?;
                let page: P = parse(&answer.url, &document)?;
                let following = answer
                    .header("link")
                    .and_then(url::next_page)
                    .map(|link| url::join(&request.url, link))
                    .transpose()?;
                Ok(Some((page, following, document.len() as u64)))
            })?;
            let Some((page, following, size)) = page else {
                return Ok(None);
            };
            bytes += size;
            check_bytes("a list", bytes, most, "document_bytes")?;
            all.extend(items(page));
            if all.len() as u64 > limits.entries {
                return Err(Error::Limit {
                    what: "a list",
                    found: all.len() as u64,
                    unit: "entries",
                    limit: limits.entries,
                    setting: "entries",
                });
            }
            next = following;
        }
        Err(Error::BadResponse {
            url: url::shown(&next.unwrap_or_default()),
            reason: "its list has no end",
            found: format!("{MAX_PAGES} pages"),
        })
    }
}
