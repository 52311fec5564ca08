//! `demitasse dev-symbols`: fills the kernel's symbol table (`abi::ksyms`) after linking.
use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use abi::ksyms;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

use crate::{
    arguments::SymbolsOptions,
    failure::{Failure, TOOL_FAILED, say},
};

pub fn run(options: &SymbolsOptions) -> Result<u8, Failure> {
    let path = &options.kernel;
    let failed = |error: String, help: &str| Failure::new(TOOL_FAILED, format!("{}: {error}", path.display()), help);
    let bytes = fs::read(path).map_err(|error| failed(error.to_string(), "give the linked kernel"))?;
    let Some((place, room, table)) = table_for(&bytes).map_err(|error| failed(error, "give the linked kernel"))? else {
        say(format_args!("note: {} has no section {}: backtraces will show addresses", path.display(), ksyms::SECTION));
        return Ok(0);
    };
    if table.len() as u64 > room {
        let error = format!("the symbol table has {} bytes, the section {} only {room}", table.len(), ksyms::SECTION);
        return Err(failed(error, "reserve more in the kernel's linker script"));
    }
    fill(path, place, &table).map_err(|error| failed(error.to_string(), "check its permissions"))?;
    Ok(0)
}

/// The section's place in the file, its length, and what belongs there; `None` without a section.
fn table_for(elf: &[u8]) -> Result<Option<(u64, u64, Vec<u8>)>, String> {
    let file = object::File::parse(elf).map_err(|error| error.to_string())?;
    let Some(section) = file.section_by_name(ksyms::SECTION) else { return Ok(None) };
    let (place, room) =
        section.file_range().ok_or_else(|| format!("section {} has no bytes in the file", ksyms::SECTION))?;
    Ok(Some((place, room, ksyms::encode(symbols(&file)))))
}

/// All code symbols, and an empty one at each end of code.
fn symbols(file: &object::File<'_>) -> Vec<(u32, String)> {
    let offset = |address: u64| address.checked_sub(ksyms::KERNEL_BASE).and_then(|offset| u32::try_from(offset).ok());
    let mut symbols = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        symbols.extend(offset(section.address() + section.size()).map(|end| (end, String::new())));
    }
    for symbol in file.symbols() {
        let code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label);
        let in_text = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .is_some_and(|section| section.kind() == SectionKind::Text);
        if let (true, true, Ok(name), Some(at)) = (code, in_text, symbol.name(), offset(symbol.address()))
            && !name.is_empty()
            && !name.starts_with(".L")
        {
            symbols.push((at, shorten(name)));
        }
    }
    symbols
}

/// The symbol's path without hash, and with generic arguments and types left out.
fn shorten(name: &str) -> String {
    let full = format!("{:#}", rustc_demangle::demangle(name));
    let mut short = String::new();
    let mut depth = 0_usize;
    let mut inner = String::new();
    for character in full.chars() {
        match character {
            '<' => {
                depth += 1;
                inner.clear();
            }
            // The arrow of a function type is no bracket.
            '>' if !inner.ends_with('-') => {
                depth = depth.saturating_sub(1);
                // `<T as Trait>::f` begins with its brackets: then T is worth showing.
                if depth == 0 && short.is_empty() {
                    short = inner.split(" as ").next().unwrap_or_default().to_string();
                }
            }
            _ if depth == 0 => short.push(character),
            _ => inner.push(character),
        }
    }
    short.replace("::::", "::").trim_end_matches("::").to_string()
}

fn fill(path: &Path, place: u64, table: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(place))?;
    file.write_all(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_hashes_and_generics() {
        for (symbol, short) in [
            ("_ZN7machine4task4park17h0123456789abcdefE", "machine::task::park"),
            (
                "_ZN4core3ptr42drop_in_place$LT$alloc..string..String$GT$17h0123456789abcdefE",
                "core::ptr::drop_in_place",
            ),
            (
                "_ZN56_$LT$machine..lock..Guard$u20$as$u20$core..ops..Drop$GT$4drop17h0123456789abcdefE",
                "machine::lock::Guard::drop",
            ),
            ("memcpy", "memcpy"),
        ] {
            assert_eq!(shorten(symbol), short);
        }
    }

    #[test]
    fn this_programs_own_symbols_are_found() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        // It is linked elsewhere, so nothing is in the kernel's range: but it must be read.
        assert_eq!(table_for(&own), Ok(None));
        assert!(table_for(b"no ELF").is_err());
    }
}
