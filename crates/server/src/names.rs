//! Names for what users did not name: an adjective and an animal.

use crate::ids::Ids;

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "bold", "brave", "brief", "bright", "brisk", "calm", "careful", "clever", "cold",
    "cool", "crisp", "curious", "daring", "deep", "eager", "early", "easy", "fair", "fast", "fine", "firm",
    "fresh", "gentle", "glad", "golden", "good", "grand", "green", "happy", "hardy", "honest", "keen", "kind",
    "large", "light", "lively", "loud", "loyal", "lucky", "mellow", "merry", "mild", "modest", "neat", "nice",
    "noble", "plain", "polite", "proud", "quick", "quiet", "rapid", "rare", "ready", "round", "sharp", "shy",
    "silent", "silver", "slim", "smart", "smooth", "soft", "solid", "steady", "strong", "sunny", "swift", "tall",
    "tidy", "tiny", "warm", "wise", "witty", "young",
];

const ANIMALS: &[&str] = &[
    "adder", "badger", "bear", "beaver", "bee", "bison", "boar", "bobcat", "camel", "carp", "cat", "cobra", "cod",
    "crab", "crane", "cricket", "crow", "deer", "dingo", "dog", "dolphin", "dove", "duck", "eagle", "eel", "elk",
    "falcon", "ferret", "finch", "firefly", "fish", "fox", "frog", "gecko", "goat", "goose", "gull", "hamster",
    "hare", "hawk", "hen", "heron", "horse", "hound", "ibex", "jay", "koala", "lark", "lemur", "lion", "lizard",
    "llama", "lynx", "magpie", "mole", "monkey", "moose", "moth", "mouse", "mule", "newt", "orca", "otter", "owl",
    "panda", "parrot", "penguin", "pony", "puma", "quail", "rabbit", "ram", "raven", "robin", "salmon", "seal",
    "shark", "sheep", "shrimp", "snail", "sparrow", "squid", "stork", "swan", "tiger", "toad", "trout", "turtle",
    "walrus", "whale", "wolf", "wombat", "wren", "yak", "zebra",
];

/// A name such as `brave-otter`.
pub(crate) fn random(ids: &Ids) -> String {
    let pick = |words: &[&'static str]| {
        let count = u32::try_from(words.len()).expect("the lists are short");
        words[ids.below(count) as usize]
    };
    format!("{}-{}", pick(ADJECTIVES), pick(ANIMALS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_valid_one() {
        for adjective in ADJECTIVES {
            for animal in ANIMALS {
                api::configurations::check_resource_name(&format!("{adjective}-{animal}-100")).unwrap();
            }
        }
        assert_eq!(random(&Ids::seeded(7)), random(&Ids::seeded(7)));
    }
}
