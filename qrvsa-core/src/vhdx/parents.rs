//! Where a parent is looked for, and which of the files found there it is: one way for whoever opens, checks or merges.

use std::path::{Path, PathBuf};

use super::format::ParentLocator;
use crate::error::{Error, Result};

/// What a search found.
pub(super) enum Found<T> {
    /// The parent, and where it is.
    Parent(PathBuf, T),
    /// No parent; this is what the first of its places holds that is not empty.
    Other(PathBuf, Result<T>),
    /// Nothing at any of the places.
    Nothing,
}

/// The places where the parent of `child` may be, in order.
pub fn parent_candidates(child: &Path, locator: &ParentLocator) -> Vec<PathBuf> {
    candidates(child, locator.paths().into_iter().map(|(_, text)| text))
}

/// The places that these texts of a locator in `child` may mean, in order.
pub(super) fn candidates<'a>(child: &Path, texts: impl Iterator<Item = &'a str> + Clone) -> Vec<PathBuf> {
    let directory = child.parent().unwrap_or(Path::new(""));
    let mut places: Vec<PathBuf> = Vec::new();
    let mut add = |place: PathBuf| {
        if !places.contains(&place) {
            places.push(place);
        }
    };
    for text in texts.clone().filter(|text| !text.is_empty()) {
        let path = text.replace('\\', "/");
        let foreign = path.starts_with("//") || path.as_bytes().get(1) == Some(&b':');
        if !foreign {
            // An absolute path replaces the directory.
            add(directory.join(&path));
        }
        // Here, a backslash may be part of a name.
        add(directory.join(text));
    }
    // A path of another system: the file may have come along with its child.
    for text in texts {
        if let Some(name) = text.rsplit(['\\', '/']).next().filter(|name| !name.is_empty()) {
            add(directory.join(name));
        }
    }
    places
}

/// Looks at the places in order until one has the parent. `look` tells what is there, and whether that is the parent; `None`
/// if nothing is.
pub(super) fn search<T>(places: Vec<PathBuf>, mut look: impl FnMut(&Path) -> Option<Result<(T, bool)>>) -> Found<T> {
    let mut other = None;
    for place in places {
        match look(&place) {
            None => {}
            Some(Ok((parent, true))) => return Found::Parent(place, parent),
            Some(seen) => {
                other.get_or_insert_with(|| (place, seen.map(|(seen, _)| seen)));
            }
        }
    }
    other.map_or(Found::Nothing, |(place, seen)| Found::Other(place, seen))
}

/// The parent, or why there is none.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound); [`Corrupt`](crate::ErrorKind::Corrupt) if what is there is another image; that of the look.
pub(super) fn only_fitting<T>(found: Found<T>, child: &Path, locator: &ParentLocator) -> Result<(PathBuf, T)> {
    let child_name = child.display();
    match found {
        Found::Parent(place, parent) => Ok((place, parent)),
        Found::Other(place, Ok(_)) => {
            let place = place.display();
            crate::fail!(
                Corrupt,
                "{child_name}: its parent {place} was changed since, or is another image; what this one holds does not fit to it"
            )
        }
        Found::Other(_, Err(e)) => Err(Error::new(e.kind(), format!("{child_name}: its parent cannot be opened: {e}"))),
        Found::Nothing => Err(locator.not_found(child)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn where_parents_may_be() {
        let places = |texts: &[&str]| {
            let found = candidates(Path::new("/d/child.vhdx"), texts.iter().copied());
            found.into_iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(places(&["../p.vhdx"]), ["/d/../p.vhdx", "/d/p.vhdx"]);
        assert_eq!(places(&[".\\a\\p.vhdx"]), ["/d/./a/p.vhdx", "/d/.\\a\\p.vhdx", "/d/p.vhdx"]);
        assert_eq!(places(&["C:\\p.vhdx"]), ["/d/C:\\p.vhdx", "/d/p.vhdx"]);
        assert_eq!(places(&["/x/y\\z"]), ["/x/y/z", "/x/y\\z", "/d/z"]);
        assert_eq!(places(&[""]), [""; 0]);
    }

    #[test]
    fn the_first_that_fits_is_the_parent() {
        let seek = |seen: &[(&str, Option<Result<bool>>)]| {
            let places = seen.iter().map(|(place, _)| PathBuf::from(place)).collect();
            let find = |path: &Path| seen.iter().find(|(place, _)| Path::new(place) == path).map(|(_, seen)| seen);
            search(places, |path| match find(path)? {
                None => None,
                Some(Ok(fits)) => Some(Ok(((), *fits))),
                Some(Err(e)) => Some(Err(Error::new(e.kind(), "damaged"))),
            })
        };
        let damaged = || Some(Err(Error::new(ErrorKind::Corrupt, "damaged")));
        let all = [("a", None), ("b", damaged()), ("c", Some(Ok(false))), ("d", Some(Ok(true)))];
        assert!(matches!(seek(&all), Found::Parent(place, ()) if place == Path::new("d")));
        assert!(matches!(seek(&all[..3]), Found::Other(place, Err(_)) if place == Path::new("b")));
        assert!(matches!(seek(&all[2..3]), Found::Other(place, Ok(())) if place == Path::new("c")));
        assert!(matches!(seek(&all[..1]), Found::Nothing));
    }
}
