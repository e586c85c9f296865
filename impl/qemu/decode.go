package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// decode fills dst, a pointer to a struct, from a JSON object as strictly as Firecracker does: names are
// case-sensitive, unknown and repeated fields are refused, and a field tagged `need:"yes"` must be there.
// Structs inside are held to the same rules, unless tagged `lax:"yes"`. Errors are faults.
func decode(body []byte, dst any) error {
	if err := decodeObject(body, reflect.ValueOf(dst).Elem()); err != nil {
		return faultf("An error occurred when deserializing the json body of a request: %s.", err)
	}
	return nil
}

func decodeObject(raw []byte, dst reflect.Value) error {
	fields, err := splitObject(raw)
	if err != nil {
		return err
	}
	known := map[string]int{}
	var names []string
	for i := range dst.NumField() {
		name, _, _ := strings.Cut(dst.Type().Field(i).Tag.Get("json"), ",")
		known[name] = i
		names = append(names, "`"+name+"`")
	}
	for name, value := range fields {
		i, ok := known[name]
		if !ok {
			return fmt.Errorf("unknown field `%s`, expected one of %s", name, strings.Join(names, ", "))
		}
		if err := decodeField(value, dst.Field(i), dst.Type().Field(i)); err != nil {
			return fmt.Errorf("field `%s`: %w", name, err)
		}
	}
	for name, i := range known {
		if _, ok := fields[name]; !ok && dst.Type().Field(i).Tag.Get("need") == "yes" {
			return fmt.Errorf("missing field `%s`", name)
		}
	}
	return nil
}

func decodeField(raw json.RawMessage, dst reflect.Value, field reflect.StructField) error {
	isNull := string(raw) == "null"
	if isNull && dst.Kind() == reflect.Pointer {
		return nil
	}
	if isNull {
		return fmt.Errorf("invalid type: null, expected %s", dst.Type().Kind())
	}
	strict := field.Tag.Get("lax") != "yes"
	if dst.Kind() == reflect.Pointer && dst.Type().Elem().Kind() == reflect.Struct && strict {
		dst.Set(reflect.New(dst.Type().Elem()))
		return decodeObject(raw, dst.Elem())
	}
	if err := json.Unmarshal(raw, dst.Addr().Interface()); err != nil {
		return err
	}
	return nil
}

// splitObject returns an object's members by name and refuses repeated names and trailing text.
func splitObject(raw []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	first, err := dec.Token()
	if err != nil {
		return nil, err
	}
	if first != json.Delim('{') {
		return nil, errors.New("invalid type: expected an object")
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("duplicate field `%s`", name)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing characters")
	}
	return fields, nil
}
