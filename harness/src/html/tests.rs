//! The report of runs that went well, badly, or not at all.

use super::*;
use crate::row::tests::experiment;
use crate::trials::Trip;

fn page(text: &str, rows: &dyn Fn(&Experiment) -> Vec<Row>) -> String {
    let experiment = experiment(text);
    let rows = rows(&experiment);
    report(&experiment, &Environment::default(), &Summary::of(&experiment, &rows, false), &rows)
}

#[test]
fn a_report_needs_no_network_and_no_script() {
    let page = page("question = \"<why> & how?\"\n[guest]\nram = \"16 MiB\"", &|e| {
        vec![Row::new(e, &e.cells[0], 0, &Trip::default())]
    });
    assert!(page.contains("&lt;why&gt; &amp; how?"));
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
    assert!(page.contains("No energy in any row: no meter was read."));
    assert!(!page.contains("NaN"));
}

#[test]
fn rows_of_two_accelerators_are_told_of() {
    let under = |names: &[&str]| {
        let trip = |name: &&str| Trip { accelerator: (*name).to_owned(), ..Trip::default() };
        let trips: Vec<Trip> = names.iter().map(trip).collect();
        page("[guest]\nram = \"16 MiB\"", &|e| trips.iter().map(|t| Row::new(e, &e.cells[0], 0, t)).collect())
    };
    assert!(under(&["tcg", "kvm", "tcg"]).contains("not to be compared: kvm in 1, tcg in 2."));
    assert!(!under(&["tcg", "unknown", "tcg"]).contains("not to be compared"));
}

#[test]
fn a_varied_quantity_is_an_axis() {
    let sweep = "[guest]\nram = \"16 MiB\"\n[vary]\n\"link.rate\" = [\"10 MiB/s\", \"20 MiB/s\", \"40 MiB/s\"]";
    let with_rows = page(sweep, &|e| e.cells.iter().map(|c| Row::new(e, c, 0, &Trip::default())).collect());
    assert!(with_rows.contains("over link.rate") && with_rows.contains("<polyline"));
    assert!(with_rows.contains(">20 MiB/s</text>") && with_rows.contains(">40 MiB/s</text>"));
    let few = page("[guest]\nram = \"16 MiB\"\n[vary]\n\"guest.vcpus\" = [1, 2]", &|_| Vec::new());
    assert!(!few.contains("<polyline"));
    assert!(few.contains("there are no rows"));
}
