//! How a run ends when all units are there: under its name, and shared.

use std::{path::PathBuf, sync::Arc};

use potluck_core::{Problem, Reason, hash, merkle::FileTree};

use super::{
    super::{
        context::blocking, driver::DISK_RETRY, existing, live::Live, place, prepare::Collection,
        report::Reporter, target, view::State,
    },
    Prepared, Run,
};

impl Run {
    /// Gives it its name and shares it.
    pub(super) async fn place(
        &self,
        live: &Arc<Live>,
        prepared: &Prepared,
        reporter: &Reporter,
    ) -> Result<bool, Problem> {
        loop {
            let (part, claim, stop) = (Arc::clone(&live.part), self.spec.sha256, self.stop.clone());
            match blocking(move || place::finish(&part, claim, &stop)).await? {
                Ok(()) => break,
                Err(problem) if problem.reason == Reason::DiskFull => {
                    reporter.state(State::Waiting, Some(problem));
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(false),
                        () = tokio::time::sleep(DISK_RETRY) => {}
                    }
                }
                Err(problem) => return Err(problem),
            }
        }
        self.adopt(live, prepared).await;
        Ok(true)
    }

    /// Hands a finished download to the library. It is done whether or not this works.
    async fn adopt(&self, live: &Arc<Live>, prepared: &Prepared) {
        let path = live.part.target().path.clone();
        let adopted = match &prepared.collection {
            None => {
                let tree = match live.checks.tree(0) {
                    Some(tree) => tree.clone(),
                    None => match self.tree_of_small(live).await {
                        Some(tree) => tree,
                        None => return,
                    },
                };
                self.context
                    .library
                    .adopt_file(path.clone(), tree, self.spec.sha256)
                    .await
            }
            Some(collection) => self.adopt_collection(live, collection, path.clone()).await,
        };
        if let Err(problem) = adopted {
            tracing::warn!(path = %path.display(), %problem, "fetched and verified, and could not be shared");
            self.context.holdings.remove(&[self.spec.id]);
        }
    }

    /// The tree of a file of one piece that an earlier run fetched.
    async fn tree_of_small(&self, live: &Arc<Live>) -> Option<FileTree> {
        let part = Arc::clone(&live.part);
        blocking(move || {
            let file = part.file(0).ok()?;
            hash::hash_file(&file, part.plan().total(), 1, &hash::to_the_end).ok()
        })
        .await
        .ok()?
    }

    async fn adopt_collection(
        &self,
        live: &Arc<Live>,
        collection: &Collection,
        path: PathBuf,
    ) -> Result<crate::library::Item, Problem> {
        let (checks, plan, root) = (
            Arc::clone(&live.checks),
            Arc::clone(live.part.plan()),
            path.clone(),
        );
        let manifest = Arc::clone(&collection.manifest);
        let entries = Arc::clone(&manifest);
        let stop = self.stop.clone();
        let trees = blocking(move || existing::trees(&checks, &plan, &entries, &root, &stop)).await?;
        let trees = trees.map_err(|error| target::problem(&path, &error))?;
        self.context.library.adopt_collection(path, manifest, trees).await
    }
}
