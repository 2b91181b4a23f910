//! Texts of up to 255 bytes, packed without gaps.
//!
//! Texts of similar length share a *size class*, an array of equal cells in pages. Removing a text
//! moves the last cell of its class into the gap, so no memory is lost between texts, whatever the
//! order in which they come and go. The caller must update the reference to the moved text.
//!
//! Invariant: the cells of a class below its length are all in use.

/// Difference of the cell sizes of two neighbouring classes, in bytes.
const STEP: usize = 4;

/// Number of classes: enough for texts of 255 bytes.
const CLASSES: usize = 256 / STEP;

/// Cells per page.
const PAGE: u32 = 1024;

/// Fills the rest of a cell: no UTF-8 text contains this byte.
const PADDING: u8 = 0xff;

/// Where a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextRef {
    /// Its cell in its class.
    pub(crate) cell: u32,
    /// Its length in bytes, which determines its class.
    pub(crate) len: u8,
}

impl TextRef {
    fn class(self) -> usize {
        class_of(self.len.into())
    }

    /// Whether two texts are in the same cell.
    pub(crate) fn is_same_cell(self, other: Self) -> bool {
        self.cell == other.cell && self.class() == other.class()
    }
}

fn class_of(len: usize) -> usize {
    len.saturating_sub(1) / STEP
}

#[derive(Debug, Default)]
struct SizeClass {
    pages: Vec<Vec<u8>>,
    len: u32,
}

/// The texts.
#[derive(Debug)]
pub(crate) struct Texts {
    classes: [SizeClass; CLASSES],
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            classes: std::array::from_fn(|_| SizeClass::default()),
        }
    }
}

impl Texts {
    /// Stores a text of at most 255 bytes, the maximum length of a name.
    pub(crate) fn insert(&mut self, text: &str) -> TextRef {
        let len = u8::try_from(text.len()).expect("a name has at most 255 bytes");
        let class = class_of(text.len());
        let size = (class + 1) * STEP;
        let SizeClass { pages, len: cells } = &mut self.classes[class];
        if cells.is_multiple_of(PAGE) {
            pages.push(Vec::with_capacity(PAGE as usize * size));
        }
        if let Some(page) = pages.last_mut() {
            page.extend_from_slice(text.as_bytes());
            page.resize(page.len() + size - text.len(), PADDING);
        }
        let cell = *cells;
        *cells += 1;
        TextRef { cell, len }
    }

    /// A stored text.
    pub(crate) fn get(&self, text: TextRef) -> &str {
        std::str::from_utf8(self.bytes(text)).expect("only texts are stored")
    }

    /// The bytes of a stored text.
    pub(crate) fn bytes(&self, text: TextRef) -> &[u8] {
        &self.cell(text.class(), text.cell)[..text.len.into()]
    }

    fn cell(&self, class: usize, cell: u32) -> &[u8] {
        let size = (class + 1) * STEP;
        let at = (cell % PAGE) as usize * size;
        &self.classes[class].pages[(cell / PAGE) as usize][at..at + size]
    }

    /// The text in the last cell of the class of `text`, which moves if `text` is removed.
    pub(crate) fn last_of_class(&self, text: TextRef) -> TextRef {
        let class = text.class();
        let cell = self.classes[class].len - 1;
        let bytes = self.cell(class, cell);
        let padding = bytes.iter().rev().take_while(|&&byte| byte == PADDING).count();
        TextRef {
            cell,
            // Fits: it is the length of a stored text.
            len: (bytes.len() - padding) as u8,
        }
    }

    /// Removes a text. The text of [`Self::last_of_class`] moves to its cell.
    pub(crate) fn remove(&mut self, text: TextRef) {
        let class = text.class();
        let size = (class + 1) * STEP;
        let last = self.classes[class].len - 1;
        let SizeClass { pages, len } = &mut self.classes[class];
        let Some(last_page) = pages.last_mut() else {
            return;
        };
        let from = last_page.len() - size;
        let mut moved = [0; CLASSES * STEP];
        moved[..size].copy_from_slice(&last_page[from..]);
        last_page.truncate(from);
        if last_page.is_empty() {
            pages.pop();
        }
        *len = last;
        if text.cell != last {
            let at = (text.cell % PAGE) as usize * size;
            pages[(text.cell / PAGE) as usize][at..at + size].copy_from_slice(&moved[..size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_stay_readable_while_others_come_and_go(
            steps in prop::collection::vec((any::<u8>(), "[aé]{0,9}|a{250,255}"), 1..400)
        ) {
            let mut texts = Texts::default();
            let mut model: Vec<(TextRef, String)> = Vec::new();
            for (choice, text) in steps {
                if choice % 5 < 3 || model.is_empty() {
                    model.push((texts.insert(&text), text));
                } else {
                    let at = usize::from(choice) % model.len();
                    let (removed, _) = model.swap_remove(at);
                    let last = texts.last_of_class(removed);
                    texts.remove(removed);
                    if last != removed {
                        let moved = model.iter_mut().find(|(text, _)| *text == last);
                        moved.expect("the last text is stored").0.cell = removed.cell;
                    }
                }
                for (text, expected) in &model {
                    prop_assert_eq!(texts.get(*text), expected);
                }
            }
            let cells: u32 = texts.classes.iter().map(|class| class.len).sum();
            prop_assert_eq!(cells as usize, model.len());
        }
    }
}
