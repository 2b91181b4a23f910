//! Checks the style of the contract on its compiled descriptors: names, request and response pairs,
//! paging, comments, and one polarity for flags.

use std::collections::{HashMap, HashSet};

use potluck_core::proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Field numbers of `FileDescriptorProto`, `DescriptorProto`, `EnumDescriptorProto` and
/// `ServiceDescriptorProto` that form the path of an element in the source information.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const ONEOFS: i32 = 8;
const ENUM_VALUES: i32 = 2;
const METHODS: i32 = 2;

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = |file: &FileDescriptorProto| file.package() == "potluck.v1";
    let files: Vec<_> = set.file.into_iter().filter(ours).collect();
    assert_eq!(files.len(), 6);
    files
}

fn messages(files: &[FileDescriptorProto]) -> impl Iterator<Item = &DescriptorProto> {
    files.iter().flat_map(|file| &file.message_type)
}

/// The comments before the elements of a file, by the path of the element.
fn comments(file: &FileDescriptorProto) -> HashMap<&[i32], &str> {
    let source = file.source_code_info.as_ref().unwrap();
    let locations = source.location.iter();
    locations
        .map(|location| (&location.path[..], location.leading_comments().trim()))
        .collect()
}

/// Calls `check` with the path and the full name of every message, field, oneof, enum, value,
/// service and method of a file.
fn for_each_element(file: &FileDescriptorProto, check: &mut dyn FnMut(&[i32], String)) {
    fn numbered<T>(items: &[T]) -> impl Iterator<Item = (i32, &T)> {
        (0..).zip(items)
    }
    for (at, message) in numbered(&file.message_type) {
        assert!(message.nested_type.is_empty() && message.enum_type.is_empty());
        let name = message.name();
        check(&[MESSAGES, at], name.to_owned());
        for (field, descriptor) in numbered(&message.field) {
            check(
                &[MESSAGES, at, FIELDS, field],
                format!("{name}.{}", descriptor.name()),
            );
        }
        // The compiler adds a oneof for each optional field.
        let optional = message
            .field
            .iter()
            .filter(|field| field.proto3_optional())
            .count();
        let oneofs = &message.oneof_decl[..message.oneof_decl.len() - optional];
        for (oneof, descriptor) in numbered(oneofs) {
            check(
                &[MESSAGES, at, ONEOFS, oneof],
                format!("{name}.{}", descriptor.name()),
            );
        }
    }
    for (at, descriptor) in numbered(&file.enum_type) {
        let name = descriptor.name();
        check(&[ENUMS, at], name.to_owned());
        for (value, descriptor) in numbered(&descriptor.value) {
            check(
                &[ENUMS, at, ENUM_VALUES, value],
                format!("{name}.{}", descriptor.name()),
            );
        }
    }
    for (at, service) in numbered(&file.service) {
        let name = service.name();
        check(&[SERVICES, at], name.to_owned());
        for (method, descriptor) in numbered(&service.method) {
            check(
                &[SERVICES, at, METHODS, method],
                format!("{name}.{}", descriptor.name()),
            );
        }
    }
}

fn is_upper_camel(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn is_lower_snake(name: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('_').all(is_word)
}

/// Converts `FileKind` to `FILE_KIND_`.
fn enum_prefix(name: &str) -> String {
    let mut prefix = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix + "_"
}

fn field<'a>(message: &'a DescriptorProto, name: &str) -> Option<&'a FieldDescriptorProto> {
    message.field.iter().find(|field| field.name() == name)
}

#[test]
fn names_follow_the_style_guide() {
    let files = files();
    for message in messages(&files) {
        assert!(is_upper_camel(message.name()), "{}", message.name());
        let fields = message.field.iter().map(FieldDescriptorProto::name);
        // The oneof of an optional field is named after it, with an underscore.
        let oneofs = message
            .oneof_decl
            .iter()
            .map(|oneof| oneof.name().trim_start_matches('_'));
        for name in fields.chain(oneofs) {
            assert!(is_lower_snake(name), "{}.{name}", message.name());
        }
    }
    for service in files.iter().flat_map(|file| &file.service) {
        assert!(is_upper_camel(service.name()) && service.name().ends_with("Service"));
        for method in &service.method {
            assert!(is_upper_camel(method.name()), "{}", method.name());
        }
    }
}

#[test]
fn values_of_an_enum_have_its_prefix_and_zero_is_unspecified() {
    let files = files();
    let enums: Vec<&EnumDescriptorProto> = files.iter().flat_map(|file| &file.enum_type).collect();
    assert!(!enums.is_empty());
    for descriptor in enums {
        let prefix = enum_prefix(descriptor.name());
        for value in &descriptor.value {
            let rest = value.name().strip_prefix(&prefix);
            let rest = rest.unwrap_or_else(|| panic!("{} lacks {prefix}", value.name()));
            assert!(
                rest.chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            );
            assert_eq!(value.number() == 0, rest == "UNSPECIFIED", "{}", value.name());
        }
        assert_eq!(descriptor.value[0].number(), 0, "{}", descriptor.name());
    }
}

#[test]
fn requests_and_responses_are_named_after_their_method() {
    let files = files();
    let (mut requests, mut responses) = (HashSet::new(), HashSet::new());
    for method in files
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| &service.method)
    {
        assert_eq!(
            method.input_type(),
            format!(".potluck.v1.{}Request", method.name())
        );
        assert_eq!(
            method.output_type(),
            format!(".potluck.v1.{}Response", method.name())
        );
        assert!(!method.client_streaming(), "{}", method.name());
        requests.insert(format!("{}Request", method.name()));
        responses.insert(format!("{}Response", method.name()));
    }
    for message in messages(&files) {
        let name = message.name();
        assert_eq!(name.ends_with("Request"), requests.contains(name), "{name}");
        assert_eq!(name.ends_with("Response"), responses.contains(name), "{name}");
    }
}

/// AIP-158. A list of a known small size needs no pages.
#[test]
fn lists_are_paged() {
    let files = files();
    let all: HashMap<&str, &DescriptorProto> = messages(&files)
        .map(|message| (message.name(), message))
        .collect();
    let mut paged = 0;
    for method in files
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| &service.method)
    {
        let (request, response) = (
            all[format!("{}Request", method.name()).as_str()],
            all[format!("{}Response", method.name()).as_str()],
        );
        let lists = ["List", "Query", "Search"]
            .iter()
            .any(|verb| method.name().starts_with(verb));
        let has = |message, name, kind| field(message, name).map(|field| field.r#type() == kind);
        let fields = [
            has(request, "page_size", Type::Uint32),
            has(request, "page_token", Type::String),
            has(response, "next_page_token", Type::String),
        ];
        match lists {
            true => assert_eq!(fields, [Some(true); 3], "{}", method.name()),
            false => assert_eq!(fields, [None; 3], "{}", method.name()),
        }
        let items = response.field.iter().filter(|field| {
            field.label() == Label::Repeated
                && field.r#type() == Type::Message
                && !method.server_streaming()
        });
        for items in items.filter(|_| !lists) {
            // What one call removes or changes, and the at most 1,000 runs that explain a transfer.
            let name = format!("{}.{}", response.name(), items.name());
            let bounded = [
                "UnshareResponse.removed",
                "ExplainTransferResponse.missing",
                "CollectCacheResponse.removed",
                "PinCacheResponse.entries",
            ];
            assert!(bounded.contains(&name.as_str()), "{name} is not paged");
        }
        paged += usize::from(lists);
    }
    assert_eq!(paged, 7);
}

/// A request or response is explained by its method, and needs a comment only if it says more.
#[test]
fn everything_has_a_comment() {
    let mut count = 0;
    for file in &files() {
        let comments = comments(file);
        for_each_element(file, &mut |path, name| {
            count += 1;
            let comment = comments.get(path).copied().unwrap_or_default();
            let is_pair = name.ends_with("Request") || name.ends_with("Response");
            assert!(!comment.is_empty() || is_pair, "{name} has no comment");
            if !comment.is_empty() {
                assert!(
                    comment.len() > 8 && comment.ends_with(['.', ':']),
                    "{name}: {comment}"
                );
            }
        });
    }
    assert!(count > 250, "only {count} elements were found");
}

/// A flag says what is true when it is set, in all messages the same way around.
#[test]
fn flags_have_one_polarity() {
    for message in messages(&files()) {
        for field in message.field.iter().filter(|field| field.r#type() == Type::Bool) {
            let name = field.name();
            let is_negated = ["partial", "incomplete", "not", "no", "disable", "disabled"]
                .iter()
                .any(|word| name.split('_').any(|part| part == *word));
            assert!(!is_negated, "{}.{name}", message.name());
        }
    }
}
