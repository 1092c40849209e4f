//! What a registry has: its repositories and their tags.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;

use super::endpoint::{Endpoint, scope};
use super::http::Request;
use super::{Registry, parse, url};
use crate::descriptor::null_as_default;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Pages of a list; a registry that has more goes round in circles.
pub(super) const MAX_PAGES: usize = 10_000;

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
        self.pages(
            &endpoint,
            "list the tags of",
            first,
            &scopes,
            |page: Page| page.tags,
        )
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
        self.pages(
            &endpoint,
            "list the repositories of",
            first,
            &scopes,
            |page: Page| page.repositories,
        )
    }

    fn pages<P: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        operation: &'static str,
        first: String,
        scopes: &[String],
        items: impl Fn(P) -> Vec<String>,
    ) -> Result<Vec<String>> {
        let limits = &self.http.options.limits;
        let mut all = Vec::new();
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(address) = next else {
                return Ok(all);
            };
            let request = Request::new(operation, Method::GET, address);
            let (page, following) = endpoint.request(&request, scopes, |mut answer| {
                if answer.status != 200 {
                    return Err(answer.refused(operation).into());
                }
                let bytes = answer.read(operation, limits.document_bytes)?;
                let page: P = parse(&answer.url, &bytes)?;
                let following = answer
                    .header("link")
                    .and_then(url::next_page)
                    .map(|link| url::join(&request.url, link))
                    .transpose()?;
                Ok((page, following))
            })?;
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
